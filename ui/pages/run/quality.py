"""What a run's model is worth beside the dense one: quality, size and speed in words, and what
both write. Measured by an evaluation, of which the run is the subject or which it is."""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from markupsafe import Markup

from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from jobs.evaluation.kind import MODEL, NAME, Rows, evaluations, samples_of, size_and_speed
from jobs.fields.models import has_saved, ships_without
from jobs.metrics import PERPLEXITY, TOKENS_PER_SECOND
from ui.format import href
from ui.runs.actions.single import next_links
from ui.runs.results import RunResults, kind_of, speed_conditions, stage_comparison
from ui.templates import fragments
from ui.widgets.notice import plain
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/run/quality.html")
Sample = Mapping[str, Any]


def build() -> Outputs:
    findings, texts = plain(elem_id="measures-said"), plain(elem_id="measures-samples")
    return Outputs(findings=findings, samples=texts)


def update(job: Job | None) -> Updates:
    """Findings and samples."""
    if job is None:
        return {"findings": "", "samples": ""}
    evaluation = _evaluation(job)
    rows = _rows(evaluation)
    return {
        "findings": findings(job, evaluation, rows),
        "samples": samples(evaluation if evaluation and rows else job),
    }


def _rows(evaluation: Job | None) -> Rows:
    results = queries.results([evaluation.run]) if evaluation else []
    return {(r.stage, r.metric): r for r in results}


def _evaluation(job: Job) -> Job | None:
    """Newest evaluation of the job, succeeded ones first; the job itself if it is one."""
    if job.kind == NAME:
        return job
    newest_first = evaluations(job.run)
    succeeded = (e for e in newest_first if e.state == State.SUCCEEDED)
    return next(succeeded, next(iter(newest_first), None))


def findings(job: Job, evaluation: Job | None, rows: Rows) -> Markup:
    if evaluation is None:
        return HTML.findings([], False, _invitation(job), None, "")
    kind = kind_of(evaluation)
    perplexity = {s: row.value for (s, name), row in rows.items() if name == PERPLEXITY}
    verdicts = [kind.verdict(stage_comparison(evaluation, perplexity))] if kind else []
    sentences = [text for text in (*verdicts, *size_and_speed(rows)) if text]
    where = evaluation.environment
    processor = where.get("cpu" if where.get("device") == "cpu" else "device", "")
    conditions = " · ".join(filter(None, (processor, speed_conditions(evaluation, rows.values()))))
    other = evaluation if evaluation.id != job.id else None
    waiting = evaluation.state in ACTIVE
    return HTML.findings(sentences, waiting, _invitation(job), other, conditions)


def _invitation(job: Job) -> Markup:
    kind = kind_of(job)
    if kind and not kind.has_models:
        return HTML.not_a_model(next_links(job))
    if has_saved(job, "model"):
        timed = any(row.metric == TOKENS_PER_SECOND for row in queries.results([job.run]))
        launch = href("new", kind=NAME, model=job.run)
        return HTML.not_evaluated(launch, bool(samples(job)), timed)
    return HTML.no_model(href("new", kind=job.kind, **{"from": job.run}), ships_without(job))


def samples(job: Job) -> Markup:
    """Greedy texts of dense and kept model, marked from their first difference."""
    results = RunResults(kind_of(job), queries.results([job.run]), job)
    kept = results.kept or MODEL
    dense, compressed = samples_of(job.run), samples_of(job.run, kept)
    if not compressed:
        return Markup()
    pairs = zip(dense, compressed, strict=False) if dense else (({}, s) for s in compressed)
    return HTML.samples([_pair(a, b, results.label(kept)) for a, b in pairs])


def _pair(dense: Sample, compressed: Sample, label: str) -> tuple[str, list[tuple[str, str, str]]]:
    before, after = (str(sample.get("text", "")).strip() for sample in (dense, compressed))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    same = len([*alike]) if dense else len(after)
    texts = [("Dense", before[:same], before[same:])] if dense else []
    return str(compressed.get("prompt", "")), [*texts, (label, after[:same], after[same:])]
