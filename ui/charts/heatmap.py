"""Maps of all layers (blocks by modules), colored by a statistic or by its difference from a
baseline; and the labels and units of the statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import RELATIVE_ERROR, ZERO_SHARE
from ui.charts.chart import Chart, axis, layout
from ui.format import count
from ui.theme import BLUE, LIGHT, VERMILLION

MODULE_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_WRITTEN = 12  # blocks of a map that shows its values
COLOR_PERCENTILES = (2.0, 98.0)
BITS = "bits"  # of the plan, in runs whose layers differ
DIVERGING = [[0.0, BLUE], [0.5, LIGHT.paper], [1.0, VERMILLION]]


@dataclass(frozen=True)
class Statistic:
    """A statistic of a tensor; `percent`: recorded as a share, displayed in percent."""

    label: str
    question: str
    percent: bool = False

    @property
    def scale(self) -> float:
        """Factor from the recorded to the displayed value."""
        return 100.0 if self.percent else 1.0

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label}, %" if self.percent else self.label


STATISTICS: dict[str, Statistic] = {
    ZERO_SHARE: Statistic("Exact zeros", "What share of each layer's weights is zero?", True),
    "near_zero": Statistic(
        "Near zero",
        "Where are weights within 0.05 standard deviations (of the dense tensor) of zero?",
        True,
    ),
    "std": Statistic("Std", "Where did the spread of the weights change?"),
    "kurtosis": Statistic("Kurtosis", "Which layers have heavy tails? A normal distribution: 3."),
    RELATIVE_ERROR: Statistic(
        "Relative output error", "Which layers' outputs differ most from the dense model's?", True
    ),
    "mask_overlap": Statistic(
        "Mask overlap (IoU)",
        "Where does this stage keep the same weights as the first pruning?",
        True,
    ),
    "by_size": Statistic(
        "Zeros by magnitude",
        "Where did the smallest weights become zero, and where larger ones?",
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
    BITS: Statistic("Bits", "Which layers keep more bits?"),
    "largest": Statistic("Largest magnitude", "Which layers hold the largest weights?"),
}


def with_largest(table: pd.DataFrame) -> pd.DataFrame:
    """The tensor table with the added column `largest`, the larger of |min| and |max|."""
    if not {"min", "max"} <= {*table.columns}:
        return table
    return table.assign(largest=table[["min", "max"]].abs().max(axis=1))


def available(table: pd.DataFrame) -> list[str]:
    """Names of the statistics with a value in a tensor table."""
    table = with_largest(table)
    return [name for name in STATISTICS if name in table and table[name].notna().any()]


@dataclass(frozen=True)
class MapBaseline:
    """The baseline of a map: one row per tensor, and the label of its stage or run."""

    rows: pd.DataFrame
    label: str


def cells(
    table: pd.DataFrame, stage: str, statistic: str, base: MapBaseline | None = None
) -> pd.DataFrame:
    """The rows of one stage, with the displayed value in the added column `value`.

    Args:
        table: rows of `frames.tensor_table`.
        statistic: key of `STATISTICS`.
        base: baseline; the value is then the difference from it.
    """
    rows = with_largest(table)
    rows = rows[rows["stage"] == stage]
    values = _column(rows, statistic)
    if base is not None:
        base_rows = with_largest(base.rows).drop_duplicates("tensor", keep="last")
        base_values = _column(base_rows.set_index("tensor"), statistic)
        values = values - base_values.reindex(rows["tensor"]).to_numpy()
    return rows.assign(value=values * STATISTICS[statistic].scale)


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name] if name in rows else pd.Series(float("nan"), index=rows.index)


def layer_map(
    table: pd.DataFrame,
    stage: str,
    statistic: str,
    base: MapBaseline | None = None,
) -> Chart:
    """A map of a statistic: blocks from left to right, modules from top to bottom.

    Color limits are robust (2-98 %); with a baseline the colors diverge from white at zero.

    Args:
        table, stage, statistic, base: as in `cells`.
    """
    rows, is_difference = cells(table, stage, statistic, base), base is not None
    grid = rows.pivot_table(index="module", columns="block", values="value", aggfunc="last")
    grid = grid.reindex(in_order([*grid.index]))
    low, high = color_limits(rows["value"].to_numpy(dtype=float), is_difference)
    title = title_of(STATISTICS[statistic], base)
    heat = go.Heatmap(
        x=[str(block) for block in grid.columns],
        y=[_short(module, grid.index) for module in grid.index],
        z=grid.to_numpy(dtype=float),
        zmin=low,
        zmax=high,
        colorscale=DIVERGING if is_difference else "viridis",
        colorbar=color_bar(title) | ({"tickformat": "+~g"} if is_difference else {}),
        texttemplate="%{z:.3~g}" if rows["block"].nunique() <= MAX_WRITTEN else None,
        hovertemplate="Block %{x}, %{y}: %{z:.4g}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    category: dict[str, Any] = {"type": "category", "showgrid": False}
    figure_layout = layout(
        view=stage,
        xaxis=axis("Block", nticks=12, **category),
        yaxis=axis(autorange="reversed", nticks=0, **category),
    )
    columns = {"tensor": "Tensor", "block": "Block", "n": "Weights", "value": title}
    frame = rows[[*columns]].rename(columns=columns).astype({"Block": str})
    return Chart(go.Figure(heat, figure_layout), frame, heatmap_note(rows, is_difference))


def title_of(statistic: Statistic, base: MapBaseline | None) -> str:
    """The statistic with its unit and its baseline."""
    if base is None:
        return statistic.title
    points = ", points" if statistic.percent else ""
    return f"{statistic.label}, difference from {base.label.lower()}{points}"


def color_limits(values: np.ndarray, symmetric: bool = False) -> tuple[float, float]:
    """The limits of a color scale: the 2 % and 98 % quantiles of the values.

    Equal values get a margin on both sides.

    Args:
        symmetric: limits at equal distance from zero, at the 98 % quantile of the magnitudes.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    if symmetric:
        high = float(np.percentile(np.abs(finite), COLOR_PERCENTILES[1])) or 1.0
        return -high, high
    low, high = (float(x) for x in np.percentile(finite, COLOR_PERCENTILES))
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    margin = 0.1 * abs(low) or 1.0
    return low - margin, high + margin


def heatmap_note(rows: pd.DataFrame, symmetric: bool = False) -> str:
    """The number of layers (rows of `cells`), of layers outside the color scale, and without a
    value."""
    values = rows["value"].to_numpy(dtype=float)
    low, high = color_limits(values, symmetric)
    outside = int(((values < low) | (values > high)).sum())
    missing = int(np.isnan(values).sum())
    parts = [f"n = {count(len(values))} layers"]
    if outside:
        parts.append(f"{outside} beyond the color limits ({'98' if symmetric else '2–98'} %)")
    if missing:
        parts.append(f"{missing} without a value")
    return ", ".join(parts) + "."


def in_order(modules: Sequence[str]) -> list[str]:
    """Modules in the order of the data flow: attention, then MLP; unknown modules are last."""
    ranks = {name: rank for rank, name in enumerate(MODULE_ORDER)}
    return sorted(modules, key=lambda m: (ranks.get(m.rsplit(".", 1)[-1], len(MODULE_ORDER)), m))


def _short(module: str, modules: Sequence[str]) -> str:
    """The last part of a module's name if it is unique, else the complete name."""
    last = module.rsplit(".", 1)[-1]
    return last if sum(m.rsplit(".", 1)[-1] == last for m in modules) == 1 else module


def color_bar(title: str) -> dict[str, Any]:
    """A flat color bar above the map."""
    small = {"size": 12, "color": LIGHT.muted}
    return {
        "title": {"text": title, "side": "top", "font": small},
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "len": 1,
        "thickness": 8,
        "xpad": 0,
        "ypad": 0,
        "outlinewidth": 0,
        "nticks": 4,
        "tickfont": small,
    }
