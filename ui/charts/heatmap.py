"""All layers at once: block by module, coloured by one statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.layout import axis, layout
from ui.charts.statistics import STATISTICS, Statistic, with_largest
from ui.format import count, esc
from ui.theme import LIGHT

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PRINTED = 12  # up to so many blocks the figures fit into the cells
ROBUST = (2.0, 98.0)


def layer_heatmap(
    table: pd.DataFrame, stage: str, statistic: str, picked: str | None = None
) -> go.Figure:
    """Blocks from left to right, modules from top to bottom. Colour limits are robust (2-98 %).

    Args:
        table: as `queries.tensor_table` returns it.
        statistic: a key of `STATISTICS`.
        picked: name of the tensor whose cell is outlined.
    """
    rows = with_largest(table)
    rows = rows[rows["stage"] == stage]
    shown = STATISTICS[statistic]
    grid = _grid(rows, statistic)
    low, high = colour_limits(grid.to_numpy(dtype=float) * shown.scale)
    names = _grid(rows, "tensor").reindex(index=grid.index, columns=grid.columns)
    heat = go.Heatmap(
        x=[str(block) for block in grid.columns],
        y=[_short(module, grid.index) for module in grid.index],
        z=_json(grid.to_numpy(dtype=float) * shown.scale),
        customdata=names.where(names.notna(), None).to_numpy().tolist(),
        text=_hover(rows, grid, shown, statistic),
        hovertemplate="%{text}<extra></extra>",
        texttemplate="%{z:.3~g}" if len(grid.columns) <= PRINTED else None,
        colorscale="cividis",
        zmin=low,
        zmax=high,
        xgap=1,
        ygap=1,
        colorbar=_colour_bar(shown),
    )
    place = rows[rows["tensor"] == picked]
    meta = {"pick": "cell"} | (
        {"picked": [str(place["block"].iloc[0]), _short(place["module"].iloc[0], grid.index)]}
        if len(place)
        else {}
    )
    return go.Figure(
        heat,
        layout(
            view=stage,
            meta=meta,
            xaxis=axis("Block", type="category", showgrid=False, nticks=12),
            yaxis=axis(type="category", showgrid=False, autorange="reversed", nticks=0),
        ),
    )


def colour_limits(values: np.ndarray) -> tuple[float, float]:
    """The 2 % and 98 % quantile; where all values are the same, a little to both sides of them."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(x) for x in np.percentile(finite, ROBUST))
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


def heatmap_count(table: pd.DataFrame, stage: str, statistic: str) -> str:
    """In words: how many layers there are, how many lie beyond the colours, how many lack it."""
    rows = with_largest(table)
    values = rows.loc[rows["stage"] == stage, statistic].to_numpy(dtype=float)
    low, high = colour_limits(values)
    beyond = int(((values < low) | (values > high)).sum())
    missing = int(np.isnan(values).sum())
    words = [f"n = {count(len(values))} layers"]
    if beyond:
        words.append(f"{beyond} beyond the colour limits (2–98 %)")
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


def _json(grid: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(v) else float(v) for v in row] for row in grid]


def _hover(
    rows: pd.DataFrame, grid: pd.DataFrame, shown: Statistic, statistic: str
) -> list[list[str]]:
    """Name, value, unit and n of every cell."""
    words = {
        (row.module, row.block): (
            f"<b>{esc(row.tensor)}</b><br>{shown.label} {shown.say(value)}"
            f"<br>n = {count(row.n)} weights"
        )
        for row, value in zip(rows.itertuples(), rows[statistic], strict=True)
    }
    return [[words.get((m, b), "No value") for b in grid.columns] for m in grid.index]


def _colour_bar(shown: Statistic) -> dict[str, object]:
    return {
        "title": {
            "text": shown.title,
            "side": "top",
            "font": {"size": 12, "color": LIGHT.muted},
        },
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
        "tickfont": {"size": 12, "color": LIGHT.muted},
    }
