"""Results of a run as HTML: its finding, overall metrics and metrics by stage, the time of each
step, and the findings of its newest evaluation."""

from collections.abc import Callable
from itertools import takewhile
from math import inf

import numpy as np
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
from backend.store.states import ACTIVE, RESUMABLE, State
from backend.store.tables import Job
from jobs.evaluation.kind import MODEL, NAME, evaluations, load_samples, size_and_speed
from jobs.fields.models import has_saved, parameters_of
from jobs.kind import capital
from jobs.metrics import (
    BYTES,
    PERPLEXITY,
    SPEED_UP,
    TOKENS_PER_SECOND,
    TOP1_AGREEMENT,
    metric,
    ordered,
)
from jobs.profile.kind import NAME as PROFILE
from jobs.wording import StageComparison, relative_change
from jobs.wording import times as times_of
from ui.charts.headlines import lower
from ui.format import NONE, duration, href, number, of_unit, share, size
from ui.help import explained
from ui.pages.run.draft_trees import measurements
from ui.runs.html import took
from ui.runs.profiles import (
    first_to_break,
    heldout_text,
    perplexity_over_dense,
    text_size,
)
from ui.runs.results import (
    DENSE,
    GAINS,
    RunResults,
    base_model,
    find_job,
    format_stderr,
    format_value,
    kind_of,
    size_before,
    speed_conditions,
    stage_comparison,
    window_losses,
)
from ui.templates import fragments
from ui.theme import name_colors

HTML = fragments("pages/run/page.html")
SAME_SIZE = 0.1  # relative size difference of files with the same values


def stage_tables(results: RunResults) -> Markup:
    """Metrics by stage; one table for each group of stages that have metrics in common."""
    own, paint, tables = single(results), name_colors(results.stages), []
    for stages in results.comparable_stages():
        names = [n for n in results.metrics if any(results.get(s, n) for s in stages)]
        names = [name for name in names if name not in own]
        if (
            SPEED_UP in results.metrics and results.of_models
        ):  # the median of ratios is not the ratio of these medians
            names = [name for name in names if name != TOKENS_PER_SECOND]
        names.sort(key=lambda n: (n != PERPLEXITY, n.family not in GAINS))
        rows = [
            [
                HTML.stage(explained(results.label(s)), paint[s], s == results.kept),
                *(_figure(results.get(s, n)) for n in names),
            ]
            for s in stages
        ]
        heads = [*map(explained, ("Stage", *(metric(n).title for n in names)))]
        tables.append((heads, rows))
    return HTML.stage_tables(tables)


def paired_table(job: Job, results: RunResults) -> Markup:
    """The kept stage compared with every other on the same windows; empty without recorded
    losses."""
    kept = results.kept
    losses = window_losses(job)
    if kept not in losses:
        return Markup()
    rows, windows = [], len(losses[kept])
    for stage in results.stages:
        ratio = paired_ratio(losses[kept], losses[stage]) if stage in losses else None
        if stage == kept or ratio is None:
            continue
        verdict = "" if ratio.is_significant else "not significantly different"
        span = f"{number(ratio.low, 3)} to {number(ratio.high, 3)}"
        rows.append([results.label(stage), number(ratio.value, 3), span, verdict])
    return HTML.paired(results.label(kept), rows, windows) if rows else Markup()


def single(results: RunResults) -> dict[MetricKey, StoredResult]:
    """The metrics that only the kept stage has, or that are equal at all stages. They are facts of
    the run instead of columns."""
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
    if nodes := row.details.get("nodes"):
        value = format_value(shown, row.value)
        return HTML.figure_of(value, f"predicted on held-out answers, {nodes} nodes")
    return HTML.figure(format_value(shown, row.value), format_stderr(shown, row.stderr))


def finding(job: Job, results: RunResults) -> str:
    """The finding of the run in one sentence, compared with its rival; empty before there are
    results."""
    if job.kind == PROFILE and (layer := first_to_break(job.run)):
        return f"{layer} breaks first."
    kind = kind_of(job)
    values = {key: row.value for key, row in results.rows.items()}
    if forecast := kind.forecast(values) if kind else "":
        return f"{_measured(job)} {forecast}"
    figure, interval = results.key_figure, results.interval
    certainty = f" {capital(interval)}." if interval else ""
    return (figure.text or f"{figure.value} {figure.label}.") + certainty if figure else ""


def outcome(job: Job, results: RunResults, now: int) -> Markup:
    """Loss relative to the dense model, metrics and costs."""
    pairs = _figures(results) | _sizes(job, results) | _costs(job, results, now)
    state = queued_state(job.environment or {})
    beside = beside_state(job, state, results) if state else ""
    kind, kept, lost = kind_of(job), results.kept or "", ("", "")
    measured = all(0 < results.perplexity.get(stage, 0) < inf for stage in (DENSE, kept))
    if kind and kind.compresses and kept != DENSE and measured:
        lost = against_dense(job, results).lost(kept, DENSE, kind.remedy)
    same = results.value(kept, TOP1_AGREEMENT)
    agreement = f" Both models agree on {share(same, 0)} of next tokens." if same else ""
    if results.dense and measured:
        source, label = results.perplexity[DENSE], lower(results.label(DENSE))
        change = relative_change(results.perplexity[kept], source)
        agreement += f" It is {change} that of the {label}: {number(source)}."
    conditions = speed_conditions(job, results.rows.values())
    return HTML.outcome(lost, agreement, beside, pairs, conditions)


def against_dense(job: Job, results: RunResults) -> StageComparison:
    """A comparison of a run's stages, with the original model as the dense stage if it is known."""
    perplexity, losses = results.perplexity, window_losses(job)
    if results.origin and results.dense:
        perplexity = perplexity | {DENSE: results.dense}
        losses |= {s: v for s, v in window_losses(results.origin).items() if s == DENSE}
    return stage_comparison(perplexity, losses)


def beside_state(job: Job, state: QueuedState, results: RunResults) -> Markup:
    """Perplexity relative to dense that the Workbench predicted and measured for a state, beside
    that of its run, which is also given for the windows of the live measurement."""
    row, final = results.final_row(PERPLEXITY), perplexity_over_dense(job.run)
    text = windows, context = text_size(row and row.details)
    shared = state.tokens // state.context if state.context else 0
    rows = []
    if state.predicted:
        profile = find_job(state.profile)
        heldout = heldout_text(profile.environment or {}) if profile else (0, 0)
        rows.append(_ratio_row("Predicted", state.predicted, heldout))
    if state.live:
        name, measured = f"Live{', preview' * state.preview}", (shared, state.context)
        rows.append(_ratio_row(name, state.live, measured, state.low, state.high))
    # other runs measured the dense model of a pipeline
    losses = window_losses(job) if base_model(job) == state.model else {}
    ours, dense = (losses.get(stage, np.empty(0)) for stage in (results.kept or "", DENSE))
    same = paired_ratio(ours[:shared], dense[:shared])
    if same and context == state.context and shared < windows:
        name = "Final, same text as live"
        rows.append(_ratio_row(name, same.value, (shared, context), same.low, same.high))
    if final:
        whole = paired_ratio(ours, dense)
        low, high = (whole.low, whole.high) if whole else (None, None)
        rows.append(_ratio_row("Final", final, text, low, high))
    return HTML.beside(state, rows)


def _ratio_row(
    name: str,
    ratio: float,
    text: tuple[int, int],
    low: float | None = None,
    high: float | None = None,
) -> list[str]:
    windows, context = text
    interval = f"{number(low, 3)} to {number(high, 3)}" if low and high else NONE
    read = f"{windows} × {context} tokens" if windows else NONE
    return [name, of_unit(ratio, "×", 3), interval, read]


def certainty(job: Job, results: RunResults) -> Markup:
    """The reason why the stage was kept, and the comparison of stages with intervals."""
    kind = kind_of(job)
    compared = stage_comparison(results.perplexity, window_losses(job)) if results.kept else None
    verdict = kind.verdict(compared) if kind and compared else ""
    table = paired_table(job, results)
    return HTML.certainty(job.kept_reason, verdict, table)


def _figures(results: RunResults) -> dict[str, str]:
    """Metrics of the run as a whole and of its kept stage, without sizes (see `_sizes`)."""
    pairs = {}
    for name, row in results.run_level.items():
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
    before = {}
    if source:  # in 16 bits, by which all are compared, and its own file where that is another
        usual, file = size_before(source, parameters), size(source)
        own = "" if usual.startswith(file) else f"source file: {file}"
        before = {"Size before": HTML.figure_of(usual, own)}
    counted = "Size after"
    if predicted and not saved and (saved := queries.model_bytes([job.id]).get(job.id)):
        counted = "Size after, with tokenizer"

    def write(after: float) -> str:
        like_source = source and abs(after / source - 1) < SAME_SIZE
        return f"{size(after)}, as its file before" if like_source else size(after)

    if not saved:
        return before | _beside_estimate(job, counted, "", write, predicted)
    expected = predicted if predicted and size(predicted) != size(saved) else None
    return before | _beside_estimate(job, counted, write(saved), size, expected)


def _costs(job: Job, results: RunResults, now: int) -> dict[str, str]:
    known, seconds = job.environment or {}, results.seconds
    step = {capital(name): duration(s) for name, s in seconds.items()}
    lasted = took(job, now) if job.started_at else ""
    peak = size(job.peak_bytes) if job.peak_bytes else ""
    return (
        (step if len(step) == 1 else {})
        | _beside_estimate(job, "Duration", lasted, duration, known.get(ESTIMATED_SECONDS))
        | _beside_estimate(job, "Peak memory", peak, size, known.get(ESTIMATED_BYTES))
    )


def _beside_estimate(
    job: Job, what: str, real: str, write: Callable[[float], str], estimated: float | None
) -> dict[str, str]:
    """A cost of the run as a fact: what it was, what had been estimated, or both. What a run that
    was cut short did not come to is no fact of it."""
    about = "" if estimated is None else write(estimated)
    if not real:
        return {what: f"about {about} (estimated)"} if about and job.state not in RESUMABLE else {}
    return {what: HTML.figure_of(real, f"estimated {about}" if about not in ("", real) else "")}


def _measured(job: Job) -> str:
    for report in measurements(job.run):
        if report.name == job.run:
            return f"Measured: {times_of(report.speed_up)} the speed of plain decoding."
    return "Not measured yet."


def times(results: RunResults, lasted: float | None = None) -> Markup:
    """Bars of the steps, and of the remaining part of the `lasted` seconds of the run."""
    seconds = dict(results.seconds) if len(results.seconds) > 1 else {}
    if seconds and lasted and (rest := lasted - sum(seconds.values())) >= 1:
        seconds["all else: start, loading, measuring, saving"] = rest
    longest = max([*seconds.values(), 1e-9])
    bars = [(s.replace("_", " "), v / longest, duration(v)) for s, v in seconds.items()]
    return HTML.times([(explained(capital(step)), *bar) for step, *bar in bars])


def findings(job: Job) -> tuple[Markup, Job]:
    """Findings of the job's newest evaluation, preferably a successful one, or of the job itself if
    it is one, and the run with the samples; empty for a run without a model to measure."""
    found = [job] if job.kind == NAME else evaluations(job.run)
    succeeded = (each for each in found if each.state == State.SUCCEEDED)
    evaluation = next(succeeded, next(iter(found), None))
    if evaluation is None:
        launch = href("new-run", kind=NAME, model=job.run)
        return HTML.not_evaluated(launch) if has_saved(job, "model") else Markup(), job
    rows = {(r.stage, r.metric): r for r in queries.results([evaluation.run])}
    kind = kind_of(evaluation)
    perplexity = {s: row.value for (s, name), row in rows.items() if name == PERPLEXITY}
    compared = stage_comparison(perplexity, window_losses(evaluation))
    verdict = kind.verdict(compared) if kind else ""
    sentences = [text for text in (verdict, *size_and_speed(rows)) if text]
    where = evaluation.environment
    processor = where.get("cpu" if where.get("device") == "cpu" else "device", "")
    conditions = " · ".join(filter(None, (processor, speed_conditions(evaluation, rows.values()))))
    other = evaluation if evaluation.id != job.id else None
    waiting = evaluation.state in ACTIVE
    html = HTML.findings(sentences, waiting, other, conditions)
    return html, evaluation if rows else job


def samples(job: Job) -> Markup:
    """Greedy texts of the dense and the kept model, marked from their first difference."""
    results = RunResults(kind_of(job), queries.results([job.run]), job)
    kept = results.kept or MODEL
    dense, compressed = load_samples(job.run), load_samples(job.run, kept)
    if not compressed:
        return Markup()
    pairs = []
    for place, sample in enumerate(compressed[: len(dense) or None]):
        after, texts = str(sample.get("text", "")).strip(), []
        same = len(after)
        if dense:
            before = str(dense[place].get("text", "")).strip()
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
            same = len([*alike])
            texts = [(results.label(DENSE), before[:same], before[same:])]
        texts.append((results.label(kept), after[:same], after[same:]))
        pairs.append((str(sample.get("prompt", "")), texts))
    return HTML.samples(pairs)
