"""All layers at once: block by module, colored by one statistic, or by how far it is from that of
the dense tensors or of another run; and what these statistics are called, with their units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.statistics.tensors import RELATIVE_ERROR, ZERO_SHARE
from ui.charts.chart import Chart, axis, layout, ticks_to
from ui.format import NONE, count, esc, number
from ui.theme import BLUE, LIGHT, VERMILLION

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROBUST = (2.0, 98.0)
DIVERGING = [[0.0, BLUE], [0.5, LIGHT.paper], [1.0, VERMILLION]]


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


@dataclass(frozen=True)
class MapBaseline:
    """What the map is compared with: one row a tensor, and the label of their stage or run."""

    rows: pd.DataFrame
    label: str


def cells(
    table: pd.DataFrame, stage: str, statistic: str, base: MapBaseline | None = None
) -> pd.DataFrame:
    """The rows of one stage of `frames.tensor_table` with the column `value`: the statistic, a key
    of `STATISTICS`, as it is shown, or its distance from the base's."""
    rows = with_largest(table)
    rows = rows[rows["stage"] == stage]
    values = _column(rows, statistic)
    if base is not None:
        others = with_largest(base.rows).drop_duplicates("tensor", keep="last").set_index("tensor")
        values = values - _column(others, statistic).reindex(rows["tensor"]).to_numpy()
    return rows.assign(value=values * STATISTICS[statistic].scale)


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name] if name in rows else pd.Series(float("nan"), index=rows.index)


def layer_map(
    table: pd.DataFrame,
    stage: str,
    statistic: str,
    picked: str | None = None,
    base: MapBaseline | None = None,
) -> Chart:
    """The figures of a stage by layer. Color limits are robust (2-98 %); with a base they diverge
    from white. `picked`: name of the tensor whose cell is outlined."""
    rows, shown, even = cells(table, stage, statistic, base), STATISTICS[statistic], bool(base)
    figure = block_heatmap(
        rows,
        _hover(rows, shown, base),
        color_limits(rows["value"].to_numpy(dtype=float), even),
        title=title_of(shown, base, short=True),
        diverging=even,
        view=stage,
        picked=picked,
    )
    few = rows["block"].nunique() <= 12  # so many figures fit into the cells
    figure.update_traces(texttemplate="%{z:.3~g}" if few else None)
    columns = {"tensor": "Tensor", "block": "Block", "n": "Weights", "value": title_of(shown, base)}
    frame = rows[[*columns]].rename(columns=columns).astype({"Block": str})
    return Chart(figure, frame, heatmap_note(rows, even))


def block_heatmap(
    rows: pd.DataFrame,
    hover: Sequence[str],
    limits: tuple[float, float],
    *,
    title: str,
    view: str,
    picked: str | None,
    diverging: bool = False,
) -> go.Figure:
    """Blocks from left to right, modules from top to bottom; a picked cell gives its tensor.

    Args:
        rows: with the columns tensor, block, module and value; `hover`: HTML of each.
        picked: the tensor whose cell is outlined.
    """
    rows = rows.assign(hover=[*hover])
    grid = _grid(rows, "value")
    names, texts = (
        _grid(rows, column).reindex(index=grid.index, columns=grid.columns)
        for column in ("tensor", "hover")
    )
    cell = next(
        (
            [str(row.block), _short(row.module, grid.index)]
            for row in rows[rows["tensor"] == picked].itertuples()
        ),
        None,
    )
    figure = heatmap(
        [str(block) for block in grid.columns],
        [_short(module, grid.index) for module in grid.index],
        grid.to_numpy(dtype=float),
        names.where(names.notna(), None).to_numpy().tolist(),
        texts.where(texts.notna(), "No value").to_numpy().tolist(),
        limits,
        title=title,
        diverging=diverging,
        view=view,
        picked=cell,
        xaxis=axis("Block"),
        yaxis=axis(nticks=0),
    )
    return figure.update_traces(xgap=1, ygap=1)


def heatmap(
    columns: Sequence[str],
    rows: Sequence[str],
    values: np.ndarray,
    names: Sequence[Sequence[str | None]],
    hover: Sequence[Sequence[str]],
    limits: tuple[float, float],
    *,
    title: str,
    diverging: bool,
    view: str,
    picked: Sequence[str] | None,
    xaxis: dict[str, Any],
    yaxis: dict[str, Any],
) -> go.Figure:
    """A map whose cells can be picked.

    Args:
        values: [rows, columns]; NaN is a hole.
        names: of what a picked cell gives; title: of the colors.
        diverging: from white at 0, to the same distance on both sides.
        picked: column and row of the cell that is outlined.
    """
    low, high = limits
    holes = [[None if np.isnan(v) else float(v) for v in row] for row in values]
    heat = go.Heatmap(
        x=columns,
        y=rows,
        z=holes,
        customdata=names,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        zmin=low,
        zmax=high,
        colorscale=DIVERGING if diverging else "viridis",
        colorbar=color_bar(title) | (even_ticks(high) if diverging else {}),
    )
    category: dict[str, Any] = {"type": "category", "showgrid": False}
    across = category | {"nticks": 12} | xaxis
    across["title"] |= {"standoff": 20}  # else it stands between the ticks
    down = category | {"autorange": "reversed"} | yaxis
    meta: dict[str, Any] = {"pick": "cell"}
    if picked:
        meta["picked"] = picked
    return go.Figure(heat, layout(view=view, meta=meta, xaxis=across, yaxis=down))


def title_of(statistic: Statistic, base: MapBaseline | None, short: bool = False) -> str:
    """The statistic with its unit and what it is compared with; `short` for a phone."""
    if base is None:
        return statistic.title
    difference = f"difference to {base.label.lower()}{', points' if statistic.percent else ''}"
    return difference.capitalize() if short else f"{statistic.label}, {difference}"


def color_limits(values: np.ndarray, even: bool = False) -> tuple[float, float]:
    """The 2 % and 98 % quantile, or with `even` the same to both sides of 0, 98 % of the
    magnitudes; where all values are the same, a little to both sides of them."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    if even:
        high = float(np.percentile(np.abs(finite), ROBUST[1])) or 1.0
        return -high, high
    low, high = (float(x) for x in np.percentile(finite, ROBUST))
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


def heatmap_note(rows: pd.DataFrame, even: bool = False) -> str:
    """How many layers (rows of `cells`) there are, lie beyond the colors, lack a value."""
    values = rows["value"].to_numpy(dtype=float)
    low, high = color_limits(values, even)
    beyond = int(((values < low) | (values > high)).sum())
    missing = int(np.isnan(values).sum())
    words = [f"n = {count(len(values))} layers"]
    if beyond:
        words.append(f"{beyond} beyond the color limits ({'98' if even else '2–98'} %)")
    if missing:
        words.append(f"{missing} without a value")
    return ", ".join(words) + "."


def in_order(modules: Sequence[str]) -> list[str]:
    """Modules as data flows through a block: attention, then MLP; unknown ones last."""
    places = {name: i for i, name in enumerate(ORDER)}
    return sorted(modules, key=lambda m: (places.get(m.rsplit(".", 1)[-1], len(ORDER)), m))


def _grid(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """[module, block] of one column."""
    grid = rows.pivot_table(index="module", columns="block", values=column, aggfunc="last")
    return grid.reindex(in_order(list(grid.index)))


def _short(module: str, modules: Sequence[str]) -> str:
    """The last part of a module's name, where no other ends with it."""
    last = module.rsplit(".", 1)[-1]
    return last if sum(m.rsplit(".", 1)[-1] == last for m in modules) == 1 else module


def _hover(rows: pd.DataFrame, statistic: Statistic, base: MapBaseline | None) -> list[str]:
    """Name, value, unit and n of every row."""
    texts = []
    for row in rows.itertuples():
        value = row.value / statistic.scale
        text = f"{statistic.label} {statistic.say(value)}"
        if base is not None:
            sign = "+" if value > 0 else ""
            text = f"{title_of(statistic, base)}: {sign}{statistic.write(value)}"
        texts.append(f"<b>{esc(row.tensor)}</b><br>{text}<br>n = {count(row.n)} weights")
    return texts


def even_ticks(limit: float) -> dict[str, Any]:
    """Round ticks to both sides of 0, signed."""
    up = ticks_to(0.95 * limit, 2)[1:]
    ticks = [*(-t for t in up[::-1]), 0, *up]
    texts = [f"{t:+g}".replace("-", "−") if t else "0" for t in ticks]
    return {"tickvals": ticks, "ticktext": texts}


def color_bar(title: str) -> dict[str, Any]:
    """A flat bar above the map, with its title."""
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
