"""The statistics of a tensor that can be looked at: what they are called, and their units."""

import math
from dataclasses import dataclass

import pandas as pd

from backend.statistics.tensors import RELATIVE_ERROR, ZERO_SHARE
from ui.format import NONE, number


@dataclass(frozen=True)
class Statistic:
    """One statistic of a tensor; `percent`: stored as a share, shown in per cent."""

    label: str
    question: str
    percent: bool = False

    @property
    def scale(self) -> float:
        """Factor from the stored to the shown value."""
        return 100.0 if self.percent else 1.0

    @property
    def title(self) -> str:
        return f"{self.label}, %" if self.percent else self.label

    def write(self, value: float | None) -> str:
        if value is None or math.isnan(value):
            return NONE
        return f"{100 * value:.2f}" if self.percent else number(value)

    def say(self, value: float | None) -> str:
        return self.write(value) + (" %" if self.percent else "")


STATISTICS: dict[str, Statistic] = {
    ZERO_SHARE: Statistic("Exact zeros", "What share of each layer's weights is zero?", True),
    "near_zero": Statistic(
        "Near zero",
        "Where do weights lie within 0.05 standard deviations (of the dense tensor) of zero?",
        True,
    ),
    "std": Statistic("Std", "Where did the spread of the weights change?"),
    "kurtosis": Statistic("Kurtosis", "Which layers have heavy tails? A normal distribution: 3."),
    RELATIVE_ERROR: Statistic(
        "Relative output error", "Which layers' outputs differ most from the dense model's?", True
    ),
    "mask_overlap": Statistic(
        "Mask overlap (IoU)", "Where does this stage keep the weights the first pruning kept?", True
    ),
    "by_size": Statistic(
        "Zeros by magnitude",
        "Where did the smallest weights become zero, and where others instead?",
        True,
    ),
    "moved": Statistic("Relative change", "Which layers' weights changed most, ‖W−D‖/‖D‖?", True),
    "distance": Statistic(
        "Distribution shift", "Where did the distribution change, in standard deviations of dense?"
    ),
    "stable_rank": Statistic(
        "Stable rank", "How many directions carry a layer's weights, ‖W‖² / σ²?"
    ),
    "alpha": Statistic(
        "Tail exponent α",
        "Which layers' spectra have heavy tails? Well-trained layers: about 2 to 6.",
    ),
    "largest": Statistic("Largest magnitude", "Which layers hold the largest weights?"),
}


def with_largest(table: pd.DataFrame) -> pd.DataFrame:
    """The tensor table with the column `largest`, the larger of |min| and |max|."""
    if not {"min", "max"} <= {*table.columns}:
        return table
    return table.assign(largest=table[["min", "max"]].abs().max(axis=1))


def available(table: pd.DataFrame) -> list[str]:
    table = with_largest(table)
    return [name for name in STATISTICS if name in table and table[name].notna().any()]
