"""Finished runs of a model beside what a profile predicts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from backend.models.families.shapes import LinearShape
from backend.sensitivity.profile import ProfiledLayer
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows

MOST = 100  # runs drawn


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


def quantized_bytes(
    row: RunRow, layers: Iterable[ProfiledLayer | LinearShape], rest: float
) -> float | None:
    """What the bits of a quantised run come to, counted as those of a mix; None of others. `rest`:
    bytes beside the layers."""
    bits = row.figures.final(BITS_PER_WEIGHT)
    if bits is None:
        return None
    return rest + sum(x.weights * (bits if x.block >= 0 else 16) / 8 for x in layers)
