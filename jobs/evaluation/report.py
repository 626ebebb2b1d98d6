"""Findings of an evaluation in sentences: size and decoding of a saved model beside its
dense one. A speed-up within the noise of its measurement is not reported as one."""

from collections.abc import Mapping
from typing import Any

from backend.metric_key import MetricKey
from backend.store import queries
from backend.store.queries import StoredResult
from backend.store.tables import Job
from jobs import metrics
from jobs.evaluation.config import DENSE, MODEL, NAME
from jobs.wording import times

SAMPLED = metrics.GREEDY_AGREEMENT  # the figure that comes with texts
TIMED_TOKENS, REPEATS = 48, 5  # decoded at a time, and how often
MIN_GAIN, MIN_STANDARD_ERRORS = 0.05, 2.0  # below either, a speed-up is not reported as one

Rows = Mapping[tuple[str, MetricKey], StoredResult]  # (stage, metric) -> row


def verdicts(rows: Rows) -> list[str]:
    """The findings in sentences; empty before anything was measured."""
    return [text for text in (_size(rows), _decoding(rows)) if text]


def format_bytes(rows: Rows) -> dict[str, float]:
    sizes = {
        metric.series: row.value
        for (stage, metric), row in rows.items()
        if stage == MODEL and metric.family == metrics.LINEAR_BYTES
    }
    return dict(sorted(sizes.items(), key=lambda item: item[0] != DENSE))


def _size(rows: Rows) -> str:
    sizes = format_bytes(rows)
    dense = sizes.pop(DENSE, None)
    if dense is None:
        return ""
    smallest = min(sizes, key=sizes.__getitem__)
    part = sizes[smallest] / dense
    if part >= 1:
        return "Size: too few zeros for a sparse format; each would be larger than dense 16-bit."
    return (
        f"Size: as {smallest} the linear layers take {100 * part:.0f} % of dense 16-bit values. "
        "The saved file stores zeros as ordinary numbers and is not smaller."
    )


def _decoding(rows: Rows) -> str:
    keys = (
        (MODEL, metrics.TOKENS_PER_SECOND),
        (DENSE, metrics.TOKENS_PER_SECOND),
        (MODEL, metrics.SPEED_UP),
    )
    model, dense, up = (rows.get(key) for key in keys)
    if model is None or dense is None or up is None:
        return ""
    rates = f"{_rate(model)}, the dense model {_rate(dense)}"
    if abs(up.value - 1) < max(MIN_GAIN, MIN_STANDARD_ERRORS * (up.stderr or 0.0)):
        return f"Decoding: no speed-up here: {rates}."
    if up.value < 1:
        return f"Decoding: slower than the dense model here, {times(up.value)}: {rates}."
    return f"Decoding: {times(up.value)} the dense speed here: {rates}."


def _rate(row: StoredResult) -> str:
    """The median, and what the repeats lie between."""
    lowest, highest = row.details["lowest"], row.details["highest"]
    return f"{row.value:.3g} tokens/s ({lowest:.3g} to {highest:.3g})"


def evaluations(run: str) -> list[Job]:
    return [job for job in queries.jobs(kind=NAME) if job.config.get("model") == run]


def samples_of(run: str | int, stage: str = DENSE) -> list[dict[str, Any]]:
    """The samples a run has recorded at a stage: prompt, text and tokens of each."""
    for result in queries.results([run]):
        if (result.stage, result.metric) == (stage, SAMPLED):
            return list(result.details["samples"])
    return []
