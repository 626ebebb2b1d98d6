"""Finished runs of a model beside what a profile predicts, and runs beside the state of the
Workbench they were queued from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from backend.live.address import queued_state
from backend.models.families.stored import LinearShape
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows

MOST, MOST_QUEUED = 100, 8  # runs drawn, and of those queued from a state


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run of the same model: place on the horizontal axis, perplexity over dense."""

    run: str
    label: str
    x: float
    ratio: float


def measured_runs(model: str, x_of: Callable[[RunRow], float | None]) -> list[MeasuredRun]:
    """Finished runs of a model that have a place, the newest first."""
    points = []
    for row in all_rows():
        same = row.job.config.get("model") == model
        change = row.figures.change() if row.job.state == State.SUCCEEDED and same else None
        if change is not None and (x := x_of(row)) is not None:
            label = " · ".join(setting_summary(row.job)) or row.job.name
            points.append(MeasuredRun(row.job.run, label, x, 1 + change))
    return points[:MOST]


def quantized_bytes(row: RunRow, layers: Iterable[LinearShape], rest: float) -> float | None:
    """What the bits of a quantised run come to, counted as those of a mix; None of others. `rest`:
    bytes beside the layers."""
    bits = row.figures.final(BITS_PER_WEIGHT)
    if bits is None:
        return None
    return rest + sum(x.weights * (bits if x.block >= 0 else 16) / 8 for x in layers)


def queued_runs(model: str) -> list[dict[str, Any]]:
    """The newest runs queued from a state of a model: predicted, measured, what came out."""
    known = [(row.job, queued_state(row.job.environment or {})) for row in all_rows()]
    return [
        {"run": job.run, "at": job.shown_state, "final": over_dense(job.run)}
        | state.model_dump(exclude={"model"})
        for job, state in known
        if state is not None and state.model == model
    ][:MOST_QUEUED]


def over_dense(run: str) -> float | None:
    """Perplexity of what a run keeps over that of the dense model; one that began with another run
    has measured over that."""
    rows, ratio = {row.job.run: row for row in all_rows()}, 1.0
    if run not in rows:
        return None
    while row := rows.pop(run, None):
        change = row.figures.change() if row.job.state == State.SUCCEEDED else None
        if change is None:
            return None
        ratio, run = ratio * (1 + change), str(row.job.config.get("model"))
    return ratio
