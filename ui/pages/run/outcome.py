"""What a run measured, as HTML: figures of the run, of each stage, and the time of each step."""

import re
from collections.abc import Callable, Sequence

from markupsafe import Markup

from backend.live.address import QueuedState, queued_state
from backend.queue.service import (
    ESTIMATED_BYTES,
    ESTIMATED_SECONDS,
    PARAMETERS,
    PREDICTED_BYTES,
    SOURCE_BYTES,
)
from backend.statistics.paired import paired_ratio
from backend.store import queries
from backend.store.queries import StoredResult
from backend.store.tables import Job
from jobs.metrics import PERPLEXITY, SPEED_UP, metric
from jobs.wording import fixed
from ui.charts.headlines import lower
from ui.format import HOLD, NONE, duration, number, of_unit, size
from ui.runs.html import took
from ui.runs.results import (
    GAINS,
    RunResults,
    format_stderr,
    format_value,
    kind_of,
    size_before,
    size_saved,
    speed_conditions,
    stage_comparison,
    window_losses,
)
from ui.runs.sensitivity.measured import over_dense
from ui.templates import fragments
from ui.theme import name_colours

HTML = fragments("pages/run/page.html")
MINUS = re.compile(r"(?<![\w.])-(?=\d)")  # as older runs recorded it
TIMED = 20  # of the newest runs with a drafter, among which is one that timed it
Table = tuple[list[str], list[list[str]]]  # headings, rows


def stage_tables(results: RunResults) -> Markup:
    """Metrics by stage; one table for each group of stages that have metrics in common."""
    return HTML.stage_tables([_stages(results, stages) for stages in results.alike()])


def paired_table(job: Job, results: RunResults) -> Markup:
    """Kept stage against every other on the same windows; empty without recorded losses."""
    kept = results.kept
    losses = window_losses(job)
    if kept not in losses:
        return Markup()
    rows, windows = [], len(losses[kept])
    for stage in results.stages:
        ratio = paired_ratio(losses[kept], losses[stage]) if stage in losses else None
        if stage == kept or ratio is None:
            continue
        verdict = "" if ratio.told_apart else "not significantly different"
        span = f"{number(ratio.low, 3)} to {number(ratio.high, 3)}"
        rows.append([results.label(stage), number(ratio.value, 3), span, verdict])
    return HTML.paired(results.label(kept), rows, windows) if rows else Markup()


def _stages(results: RunResults, stages: Sequence[str]) -> Table:
    names = [n for n in results.metrics if any(results.get(s, n) for s in stages)]
    names.sort(key=lambda n: (n != PERPLEXITY, n.family not in GAINS))
    paint = name_colours(results.stages)
    rows = [
        [HTML.stage(results.label(s), paint[s], s == results.kept),
         *(_figure(results.get(s, n)) for n in names)]
        for s in stages
    ]  # fmt: skip
    return ["Stage", *(metric(n).title for n in names)], rows


def _figure(row: StoredResult | None) -> str:
    if row is None:
        return NONE
    shown = metric(row.metric)
    return HTML.figure(format_value(shown, row.value), format_stderr(shown, row.stderr))


def outcome(job: Job, results: RunResults, now: int) -> Markup:
    pairs: dict[str, str] = {}
    for name, row in results.of_run.items():
        value = format_value(metric(name), row.value)
        pairs[metric(name).title] = HTML.figure_of(value, row.details.get("of"))
    if len(results.seconds) == 1:
        pairs |= {sentence_case(step): duration(s) for step, s in results.seconds.items()}
    known = job.environment or {}
    seconds, memory = known.get(ESTIMATED_SECONDS), known.get(ESTIMATED_BYTES)
    pairs |= _beside_estimate(
        "Duration", took(job, now) if job.started_at else "", duration, seconds
    )
    peak = size(job.peak_bytes) if job.peak_bytes else ""
    pairs |= _beside_estimate("Peak memory", peak, size, memory)
    parameters = known.get(PARAMETERS) or results.parameters
    if source := known.get(SOURCE_BYTES):
        pairs["Size before"] = size_before(source, parameters)
    predicted, saved = known.get(PREDICTED_BYTES), results.saved_bytes
    if predicted and not saved:
        saved = queries.model_bytes([job.id]).get(job.id)
    written = size_saved(saved, parameters) if saved else ""
    pairs |= _beside_estimate("Size after", written, size, predicted)
    if state := queued_state(known):
        pairs["Perplexity over dense"] = _beside_state(state, job.run)
    conditions = speed_conditions(job, results.rows.values())
    return HTML.outcome(pairs, MINUS.sub("−", job.kept_reason), _verdict(job, results), conditions)


def _beside_state(state: QueuedState, run: str) -> Markup:
    said = {"predicted": state.predicted, "live": state.live, "final": over_dense(run)}
    figures = (f"{how} {of_unit(ratio, '×', 3)}" for how, ratio in said.items() if ratio)
    return HTML.beside(state, ", ".join(figures))


def _beside_estimate(
    what: str, real: str, write: Callable[[float | None], str], estimated: float | None
) -> dict[str, str]:
    """A cost of the run as a fact: what it was, what had been estimated, or both."""
    if estimated is None:
        return {what: real} if real else {}
    about = write(estimated)
    return {what: f"{real} (estimated {about})" if real else f"about {about} (estimated)"}


def _verdict(job: Job, results: RunResults) -> str:
    kind = kind_of(job)
    if kind is None:
        return ""
    values = {key: row.value for key, row in results.rows.items()}
    perplexity = {stage: value for (stage, name), value in values.items() if name == PERPLEXITY}
    if not results.kept:
        forecast = kind.forecast(values)
        return f"{forecast} {_measured(job)}" if forecast else ""
    verdict = kind.verdict(stage_comparison(job, perplexity))
    return f"On the evaluation text, {lower(verdict)}" if verdict else ""


def _measured(job: Job) -> str:
    for other in queries.runs_from(job.run, TIMED):
        for row in queries.results([other.id]):
            if (row.stage, row.metric) == (job.run, SPEED_UP):
                return f"{other.run} measured {fixed(row.value, 2)}{HOLD}×."
    return "Not measured yet."


def times(results: RunResults) -> Markup:
    seconds = results.seconds if len(results.seconds) > 1 else {}
    longest = max([*seconds.values(), 1e-9])
    bars = [(s.replace("_", " "), v / longest, duration(v)) for s, v in seconds.items()]
    return HTML.times([(sentence_case(step), *bar) for step, *bar in bars])


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
