"""What a run measured, as HTML: figures of the run, of each stage, and the time of each step."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from markupsafe import Markup

from backend.live.address import QueuedState, queued_state
from backend.metric_key import MetricKey
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
from backend.store.states import RESUMABLE
from backend.store.tables import Job
from jobs.fields.models import parameters_of
from jobs.metrics import BYTES, PERPLEXITY, SPEED_UP, metric, ordered
from jobs.wording import StageComparison, fixed
from ui.charts.headlines import lower
from ui.format import HOLD, NONE, duration, number, of_unit, size
from ui.pages.help.page import explained
from ui.runs.html import took
from ui.runs.profiles import over_dense
from ui.runs.results import (
    GAINS,
    RunResults,
    base_model,
    format_stderr,
    format_value,
    kind_of,
    size_before,
    size_saved,
    speed_conditions,
    stage_comparison,
    window_losses,
)
from ui.runs.weights import DENSE
from ui.templates import fragments
from ui.theme import name_colours

HTML = fragments("pages/run/page.html")
MINUS = re.compile(r"(?<![\w.])-(?=\d)")  # as older runs recorded it
LOWER = re.compile(  # so, too
    r"(.+?) is kept: better on held-out text than (.+?) \(-([\d.]+) %, -([\d.]+) to -([\d.]+) %\)"
)
TIMED = 20  # of the newest runs with a drafter, among which is one that timed it
REST = "all else: start, loading, measuring, saving"  # of a run's time, besides its steps
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
    own = single(results)
    names = [n for n in results.metrics if any(results.get(s, n) for s in stages) and n not in own]
    names.sort(key=lambda n: (n != PERPLEXITY, n.family not in GAINS))
    paint = name_colours(results.stages)
    rows = [
        [
            HTML.stage(explained(results.label(s)), paint[s], s == results.kept),
            *(_figure(results.get(s, n)) for n in names),
        ]
        for s in stages
    ]
    return [*map(explained, ("Stage", *(metric(n).title for n in names)))], rows


def single(results: RunResults) -> dict[MetricKey, StoredResult]:
    """The metrics that only the kept stage has, or that are the same at all stages: facts of the
    run, not columns of its table."""
    if not results.of_models or len(results.stages) < 2:
        return {}
    own = {key: row for (stage, key), row in results.rows.items() if stage == results.kept}
    return {
        key: row
        for key, row in own.items()
        if key != PERPLEXITY
        and {each.value for (_, of), each in results.rows.items() if of == key} == {row.value}
    }


def _figure(row: StoredResult | None) -> str:
    if row is None:
        return NONE
    shown = metric(row.metric)
    return HTML.figure(format_value(shown, row.value), format_stderr(shown, row.stderr))


def outcome(job: Job, results: RunResults, now: int) -> Markup:
    pairs = _figures(results) | _sizes(job, results) | _costs(job, results, now)
    if state := queued_state(job.environment or {}):
        pairs["Perplexity over dense"] = _beside_state(state, job.run)
    conditions = speed_conditions(job, results.rows.values())
    reason = LOWER.sub(
        r"Kept: \1. Its perplexity on held-out text is \3 % lower than with \2 (\5 to \4 %)",
        job.kept_reason,
    )
    compared = stage_comparison(job, results.perplexity) if results.kept else None
    lost, verdict = _lost(job, results, compared), _verdict(job, results, compared)
    return HTML.outcome(lost, pairs, MINUS.sub("−", reason), verdict, conditions)


def _lost(job: Job, results: RunResults, compared: StageComparison | None) -> tuple[str, str]:
    """What the model the run kept lost against its source, and what to do then."""
    kind, kept = kind_of(job), results.kept or ""
    if not (kind and kind.compresses and compared) or kept == DENSE:
        return "", ""
    measured = all(0 < compared.perplexity.get(stage, 0) < inf for stage in (DENSE, kept))
    return compared.lost(kept, DENSE, kind.remedy) if measured else ("", "")


def _figures(results: RunResults) -> dict[str, str]:
    """Of the run as a whole, and of the kept stage alone. Size is told beside that before."""
    pairs = {}
    for name, row in results.of_run.items():
        value = format_value(metric(name), row.value)
        pairs[explained(metric(name).title)] = HTML.figure_of(value, row.details.get("of"))
    facts = single(results)
    keys = sorted(ordered(facts), key=lambda n: n.family not in GAINS)
    return pairs | {
        explained(metric(n).title): _figure(facts[n]) for n in keys if n.family != BYTES
    }


def _sizes(job: Job, results: RunResults) -> dict[str, str]:
    known, saved = job.environment or {}, results.saved_bytes
    parameters = known.get(PARAMETERS) or results.parameters or parameters_of(base_model(job))
    source, predicted = known.get(SOURCE_BYTES), known.get(PREDICTED_BYTES)
    before = {"Size before": _source(source, parameters)} if source else {}
    counted = "Size after"
    if predicted and not saved and (saved := queries.model_bytes([job.id]).get(job.id)):
        counted = "Size after, with tokenizer"
    write = partial(size_saved, parameters=parameters)
    if not saved:
        return before | _beside_estimate(job, counted, "", write, predicted)
    expected = predicted if predicted and size(predicted) != size(saved) else None
    return before | _beside_estimate(job, counted, write(saved), size, expected)


def _source(source: float, parameters: float) -> str:
    """The model in 16 bits, by which all are compared, and its own file where that is another."""
    usual, file = size_before(source, parameters), size(source)
    return HTML.figure_of(usual, "" if usual.startswith(file) else f"its file: {file}")


def _costs(job: Job, results: RunResults, now: int) -> dict[str, str]:
    known, seconds = job.environment or {}, results.seconds
    step = {sentence_case(name): duration(s) for name, s in seconds.items()}
    lasted = took(job, now) if job.started_at else ""
    peak = size(job.peak_bytes) if job.peak_bytes else ""
    return (
        (step if len(step) == 1 else {})
        | _beside_estimate(job, "Duration", lasted, duration, known.get(ESTIMATED_SECONDS))
        | _beside_estimate(job, "Peak memory", peak, size, known.get(ESTIMATED_BYTES))
    )


def _beside_state(state: QueuedState, run: str) -> Markup:
    said = {"predicted": state.predicted, "live": state.live, "final": over_dense(run)}
    figures = (f"{how} {of_unit(ratio, '×', 3)}" for how, ratio in said.items() if ratio)
    return HTML.beside(state, ", ".join(figures))


def _beside_estimate(
    job: Job, what: str, real: str, write: Callable[[float], str], estimated: float | None
) -> dict[str, str]:
    """A cost of the run as a fact: what it was, what had been estimated, or both. What a run that
    was cut short did not come to is no fact of it."""
    about = "" if estimated is None else write(estimated)
    if not real:
        return {what: f"about {about} (estimated)"} if about and job.state not in RESUMABLE else {}
    return {what: HTML.figure_of(real, f"estimated {about}" if about not in ("", real) else "")}


def _verdict(job: Job, results: RunResults, compared: StageComparison | None) -> str:
    kind = kind_of(job)
    if kind is None:
        return ""
    if compared is None:
        forecast = kind.forecast({key: row.value for key, row in results.rows.items()})
        return f"{forecast} {_measured(job)}" if forecast else ""
    verdict = kind.verdict(compared)
    return f"On the evaluation text, {lower(verdict)}" if verdict else ""


def _measured(job: Job) -> str:
    for other in queries.runs_from(job.run, TIMED):
        for row in queries.results([other.id]):
            if (row.stage, row.metric) == (job.run, SPEED_UP):
                return f"{other.run} measured {fixed(row.value, 2)}{HOLD}×."
    return "Not measured yet."


def times(results: RunResults, lasted: float | None = None) -> Markup:
    """Bars of the steps, and of what is left of the `lasted` seconds of the run."""
    seconds = dict(results.seconds) if len(results.seconds) > 1 else {}
    if seconds and lasted and (rest := lasted - sum(seconds.values())) >= 1:
        seconds[REST] = rest
    longest = max([*seconds.values(), 1e-9])
    bars = [(s.replace("_", " "), v / longest, duration(v)) for s, v in seconds.items()]
    return HTML.times([(explained(sentence_case(step)), *bar) for step, *bar in bars])


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
