"""Headings of the answer columns: size, bits and speed of each model."""

from collections.abc import Sequence
from itertools import islice

from backend.queue.service import PREDICTED_BYTES
from jobs.fields.models import parameters_of
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY, TOKENS_PER_SECOND, ZERO_SHARE
from ui.format import number, of_unit, share, size, threads
from ui.runs.rows import RunRow, all_rows, chosen

UNEQUAL = "no comparable speed: measured with other threads or on another machine"
MAX_SEARCHED = 20  # newest runs of a model searched for its speed

Speed = tuple[float, int, str]  # tokens per second alone, threads (0: not recorded), processor


def column_heads(names: Sequence[str]) -> dict[str, str]:
    """Size, bits, perplexity (before → after) and measured speed by model, such as "113 MB · 4.25
    bits · 75.0 tokens/s alone on 1 thread". Speeds are omitted if machines or thread counts
    differ."""
    rows = all_rows()
    runs = {row.head.run: row for row in chosen(rows, names)}
    facts, speeds = dict[str, list[str]](), dict[str, Speed]()
    for name in dict.fromkeys(names):
        if row := runs.get(name):
            bits, zeros = map(row.figures.final, (BITS_PER_WEIGHT, ZERO_SHARE))
            saved = row.figures.saved_bytes or row.size or row.job.environment.get(PREDICTED_BYTES)
            facts[name] = [size(saved)] if saved else []
            facts[name] += [f"{number(bits, 3)} bits"] if bits else []
            facts[name] += [f"{share(zeros, 0)} zeros"] if zeros and not bits else []
            before, after = row.figures.value(row.figures.first, PERPLEXITY), row.figures.final()
            if before and after:
                facts[name] += [f"perplexity {number(before, 3)} → {number(after, 3)}"]
            speed = _speed(row, row.figures.kept)
        else:
            parameters = parameters_of(name)
            facts[name] = [size(2 * parameters), "16 bits"] if parameters else []
            users = (r for r in [*runs.values(), *rows] if r.head.config.get("model") == name)
            measured = (_speed(user, user.figures.first) for user in islice(users, MAX_SEARCHED))
            speed = next(filter(None, measured), None)
        if speed:
            speeds[name] = speed
    is_equal = len({(count, cpu) for _, count, cpu in speeds.values() if count}) == 1
    is_equal &= all(count for _, count, _ in speeds.values())
    for name, (tokens_per_s, count, _) in speeds.items():
        alone = f"{of_unit(tokens_per_s, 'tokens/s', 3)} alone on {threads(count)}"
        facts[name].append(alone if is_equal else UNEQUAL)
    return {name: " · ".join(each) for name, each in facts.items()}


def _speed(row: RunRow, stage: str | None) -> Speed | None:
    figure = row.figures.get(stage or "", TOKENS_PER_SECOND)
    if figure is None:
        return None
    known = (row.job.environment or {}) | (figure.details or {})
    count = known.get("threads")
    return figure.value, count if isinstance(count, int) else 0, str(known.get("cpu"))
