"""What the figures of one tensor say, in sentences. Every number in them is a stored one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backend.statistics.tensors import TensorSnapshot
from ui.charts.statistics import STATISTICS, Statistic
from ui.format import number, share
from ui.pages.weights.selection import main_stages

BELL = 3.0
HEAVY = 0.5  # of kurtosis, from where tails differ from a bell curve's
WHOLE = " of the weights to exactly zero"

FIGURES: dict[str, Statistic] = {
    **STATISTICS,
    "cutoff": Statistic("Cut-off", ""),
}


@dataclass(frozen=True)
class ExplainedStatistic:
    """One figure of a tensor at all its stages, and what it says."""

    name: str
    sentence: str

    @property
    def figure(self) -> Statistic:
        return FIGURES[self.name]


def figure_of(taken: TensorSnapshot, name: str) -> float | None:
    """A figure of a snapshot by its name; None where it was not measured."""
    if name == "zero_share":
        return taken.zeros / taken.n
    if name == "largest":
        return max(abs(taken.stats["min"]), abs(taken.stats["max"]))
    return taken.stats.get(name)


def explained(
    stages: Sequence[TensorSnapshot], labels: Mapping[str, str]
) -> list[ExplainedStatistic]:
    """Every figure that was measured at some stage, in our order, with its sentence.

    Args:
        stages: one tensor's, in the order it passed through them.
    """
    path = StagePath(stages, labels)
    names = [n for n in FIGURES if any(figure_of(s, n) is not None for s in stages)]
    return [ExplainedStatistic(n, SENTENCES[n](path) if n in SENTENCES else "") for n in names]


class StagePath:
    """The stages of one tensor, with their labels."""

    def __init__(self, stages: Sequence[TensorSnapshot], labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.found = {s.stage: s for s in stages}
        self.main = [self.found[stage] for stage in main_stages([*self.found])]

    def values(self, name: str) -> list[tuple[str, float]]:
        """Label and figure of the main stages that have it."""
        pairs = [(self.label(s.stage), figure_of(s, name)) for s in self.main]
        return [(label, value) for label, value in pairs if value is not None]

    def label(self, stage: str) -> str:
        return self.labels.get(stage, stage)


def _zeros(path: StagePath) -> str:
    if len(path.main) == 1 and (only := path.values("zero_share")[0][1]):
        return f"{share(only)} of the weights are exactly zero."
    parts: list[str] = []
    before = 0.0
    for label, value in path.values("zero_share"):
        if value > before + 0.001:
            parts.append(f"{label} sets {share(value)}{'' if parts else WHOLE}")
        elif value < before - 0.001:
            parts.append(f"{label} leaves {share(value)}")
        before = value
    nothing = "No step makes weights" if len(path.main) > 1 else "No weight is"
    return f"{', '.join(parts)}." if parts else f"{nothing} exactly zero."


def _near(path: StagePath) -> str:
    near = [
        f"{path.label(s.stage)} {share(s.stats['near_zero'] - s.zeros / s.n)}"
        for s in path.main
        if "near_zero" in s.stats
    ]
    return f"Without the exact zeros: {', '.join(near)}."


def _std(path: StagePath) -> str:
    (_, first), *rest = path.values("std")
    if not rest or not first:
        return ""
    label, last = rest[-1]
    change = last / first - 1
    way = "wider" if change > 0 else "narrower"
    same = abs(change) < 0.005
    how = "as wide as" if same else f"{share(abs(change))} {way} than"
    return f"{label} is {how} the dense tensor."


def _kurtosis(path: StagePath) -> str:
    values = path.values("kurtosis")
    label, first = values[0]
    kind = "heavier tails than" if first > BELL + HEAVY else "lighter tails than"
    kind = "tails like" if abs(first - BELL) <= HEAVY else kind
    said = f"{label} has {kind} a bell curve, which has 3."
    far, value = max(values, key=lambda pair: abs(pair[1] - first))
    if abs(value - first) > HEAVY:
        said += f" {far} differs most: {number(value, 3)}."
    return said


def _error(path: StagePath) -> str:
    values = path.values("relative_error")
    if len(values) < 2:
        return ""
    (before, first), (after, last) = values[0], values[-1]
    change = last / first - 1 if first else 0.0
    way = "less" if change < 0 else "more"
    said = f"{after} ends with {share(abs(change))} {way} error than {before}."
    control = path.found.get("control")
    if control is not None and "relative_error" in control.stats:
        said += f" The control ends at {share(control.stats['relative_error'], 2)}."
    return said


def _overlap(path: StagePath) -> str:
    values = path.values("mask_overlap")[1:]  # the first is the first pruning itself
    if not values:
        return ""
    label, value = values[-1]
    both = 2 * value / (1 + value)  # intersection over union of two masks of the same size
    return f"{label} keeps {share(both)} of the weights that the first pruning kept."


def _by_size(path: StagePath) -> str:
    values = path.values("by_size")
    if not values:
        return ""
    label, value = values[0]
    if value > 0.999:
        return f"{label} dropped the smallest weights of the tensor and no others."
    return (
        f"{share(value)} of what {label} dropped is among the smallest of the dense tensor; "
        "the rest went for its inputs, row or group."
    )


def _moved(path: StagePath) -> str:
    label, value = path.values("moved")[-1]
    return f"{label} is {share(value)} of the dense tensor's norm away from it."


def _distance(path: StagePath) -> str:
    label, value = path.values("distance")[-1]
    return (
        f"{label}: the sorted weights lie {number(value, 2)} dense standard deviations from the "
        "sorted dense ones on average."
    )


def _largest(path: StagePath) -> str:
    values = path.values("largest")
    (_, first), (label, last) = values[0], values[-1]
    if len(values) < 2 or not first or abs(last / first - 1) < 0.005:
        return "The largest weight stays." if len(values) > 1 else ""
    return f"{label}: {number(last / first, 3)} times that of the dense tensor."


def _cutoff(path: StagePath) -> str:
    taken = next((s for s in path.main if s.stats.get("cutoff")), None)
    return f"{share(taken.zeros / taken.n)} of the dense weights are smaller." if taken else ""


SENTENCES: dict[str, Callable[[StagePath], str]] = {
    "zero_share": _zeros,
    "near_zero": _near,
    "std": _std,
    "kurtosis": _kurtosis,
    "relative_error": _error,
    "mask_overlap": _overlap,
    "by_size": _by_size,
    "moved": _moved,
    "distance": _distance,
    "largest": _largest,
    "cutoff": _cutoff,
}
