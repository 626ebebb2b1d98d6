"""The statistics of one tensor with sentences on what they say. Every number in them is a stored
one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backend.statistics.tensors import TensorSnapshot
from jobs.metrics import RELATIVE_ERROR, ZERO_SHARE
from ui.charts.headlines import of_rank
from ui.charts.statistics import STATISTICS, Statistic
from ui.format import NONE, number, share
from ui.pages.weights.selection import main_stages
from ui.templates import fragments
from ui.theme import stage_style

HTML = fragments("pages/weights/page.html")
NORMAL = 3.0  # kurtosis of a normal distribution
WELL_TRAINED = 2, 6  # exponents of the tail of the spectrum
HEAVY = 0.5  # of kurtosis, from where tails differ from those of a normal distribution
MIN_CHANGE = 0.0005  # relative; what would be written as 0.0 %
MIN_ZEROS = 0.001  # share of the weights, from where a stage is said to make zeros
EXPLAINED: dict[str, Statistic] = {**STATISTICS, "cutoff": Statistic("Magnitude threshold", "")}


@dataclass(frozen=True)
class ExplainedStatistic:
    """One statistic of a tensor at all its stages, and what it says."""

    name: str
    sentence: str
    values: list[float | None]

    @property
    def title(self) -> str:
        return EXPLAINED[self.name].title

    @property
    def cells(self) -> list[str | tuple[str, float]]:
        """The values as they are written, and the exact figures."""
        statistic = EXPLAINED[self.name]
        return [
            NONE if value is None else (statistic.write(value), value * statistic.scale)
            for value in self.values
        ]


def explained_html(
    snapshots: Sequence[TensorSnapshot], labels: Mapping[str, str], name: str, groups: Markup
) -> Markup:
    """The statistics of one tensor, a row each with a sentence, a column for each stage.

    Args:
        groups: address of the groups it was quantised in; empty where there are none.
    """
    stages = [(labels.get(s.stage, s.stage), stage_style(s.stage)) for s in snapshots]
    return HTML.explained(stages, explained(snapshots, labels), name, groups)


def statistic_of(snapshot: TensorSnapshot, name: str) -> float | None:
    """A statistic by its name; None where it was not measured."""
    if name == ZERO_SHARE:
        return snapshot.zeros / snapshot.n
    if name == "largest":
        return max(abs(snapshot.stats["min"]), abs(snapshot.stats["max"]))
    return snapshot.stats.get(name)


def explained(
    snapshots: Sequence[TensorSnapshot], labels: Mapping[str, str]
) -> list[ExplainedStatistic]:
    """Every statistic measured at some stage of one tensor, with its sentence; stages in order."""
    path, rows = StagePath(snapshots, labels), []
    for name in EXPLAINED:
        values = [statistic_of(s, name) for s in snapshots]
        if any(value is not None for value in values):
            rows.append(ExplainedStatistic(name, SENTENCES[name](path), values))
    return rows


class StagePath:
    """The stages of one tensor, with their labels."""

    def __init__(self, snapshots: Sequence[TensorSnapshot], labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.by_stage = {s.stage: s for s in snapshots}
        self.main = [self.by_stage[stage] for stage in main_stages([*self.by_stage])]

    def values(self, name: str) -> list[tuple[str, float]]:
        """Label and value of a statistic, of the main stages that have it."""
        pairs = [(self.label(s.stage), statistic_of(s, name)) for s in self.main]
        return [(label, value) for label, value in pairs if value is not None]

    def label(self, stage: str) -> str:
        return self.labels.get(stage, stage)


def _zeros(path: StagePath) -> str:
    if len(path.main) == 1 and (only := path.values(ZERO_SHARE)[0][1]):
        return f"{share(only)} of the weights are exactly zero."
    parts: list[str] = []
    for label, value in path.values(ZERO_SHARE):
        if parts:
            parts.append(f"{label} {share(value)}")
        elif value > MIN_ZEROS:
            parts.append(f"{label} makes {share(value)} of the weights exactly zero")
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
    kind = "heavier tails than" if first > NORMAL + HEAVY else "lighter tails than"
    kind = "tails like" if abs(first - NORMAL) <= HEAVY else kind
    sentence = f"{label} has {kind} a normal distribution (kurtosis 3)."
    far, value = max(values, key=lambda pair: abs(pair[1] - first))
    if abs(value - first) > HEAVY:
        sentence += f" {far} differs most: {number(value, 3)}."
    return sentence


def _error(path: StagePath) -> str:
    values = path.values(RELATIVE_ERROR)
    if len(values) < 2:
        return ""
    (before, first), (after, last) = values[0], values[-1]
    change = last / first - 1 if first else 0.0
    way = "less" if change < 0 else "more"
    amount = "as much" if abs(change) < MIN_CHANGE else f"{share(abs(change))} {way}"
    joint = "as" if abs(change) < MIN_CHANGE else "than"
    sentence = f"{after} ends with {amount} error {joint} {before}."
    control = path.by_stage.get("control")
    if control is not None and RELATIVE_ERROR in control.stats:
        sentence += f" The control ends at {share(control.stats[RELATIVE_ERROR], 2)}."
    return sentence


def _overlap(path: StagePath) -> str:
    values = path.values("mask_overlap")[1:]  # the first is the first pruning itself
    if not values:
        return ""
    label, value = values[-1]
    both = 2 * value / (1 + value)  # intersection over union of two masks of the same size
    kept = f"{label} keeps {share(both)} of the weights that the first pruning kept"
    return f"{kept}: an IoU of both masks of {share(value, 2)}."


def _by_size(path: StagePath) -> str:
    values = path.values("by_size")
    if not values:
        return ""
    label, value = values[0]
    if value > 0.999:
        return f"The zeros of {label} are exactly the smallest weights of the dense tensor."
    return (
        f"{share(value)} of the zeros of {label} are among the smallest weights of the dense "
        "tensor; the rest depend on their inputs, row or group."
    )


def _moved(path: StagePath) -> str:
    label, value = path.values("moved")[-1]
    return f"{label}: relative change ‖W−D‖/‖D‖ = {share(value)}."


def _distance(path: StagePath) -> str:
    label, value = path.values("distance")[-1]
    return (
        f"{label}: the sorted weights differ from the sorted dense ones by {number(value, 2)} "
        "dense standard deviations on average."
    )


def _stable_rank(path: StagePath) -> str:
    sentence = of_rank(path.values("stable_rank"))
    return f"{sentence}: the sum of the squared singular values over the largest of them."


def _alpha(path: StagePath) -> str:
    label, value = path.values("alpha")[-1]
    low, high = WELL_TRAINED
    where = "below" if value < low else "above" if value > high else "within"
    return (
        f"{label}: {number(value, 3)}, {where} the {low} to {high} that Martin and Mahoney (2021) "
        "found in well-trained layers."
    )


def _largest(path: StagePath) -> str:
    values = path.values("largest")
    (_, first), (label, last) = values[0], values[-1]
    if len(values) < 2 or not first:
        return ""
    if last == first:
        return f"{label}: the largest weight is that of the dense tensor."
    return f"{label}: {number(last / first, 3)} times that of the dense tensor."


def _cutoff(path: StagePath) -> str:
    pruned = next((s for s in path.main if s.stats.get("cutoff")), None)
    return f"{share(pruned.zeros / pruned.n)} of the dense weights are smaller." if pruned else ""


SENTENCES: dict[str, Callable[[StagePath], str]] = {
    ZERO_SHARE: _zeros,
    "near_zero": _near,
    "std": _std,
    "kurtosis": _kurtosis,
    RELATIVE_ERROR: _error,
    "mask_overlap": _overlap,
    "by_size": _by_size,
    "moved": _moved,
    "distance": _distance,
    "stable_rank": _stable_rank,
    "alpha": _alpha,
    "largest": _largest,
    "cutoff": _cutoff,
}
