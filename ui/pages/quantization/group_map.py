"""A map of one figure of every group of one tensor."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ui.charts.chart import axis
from ui.charts.heatmap import COLOR_PERCENTILES, color_limits, heatmap
from ui.format import count, number, share

MAX_CELLS = 128  # rows and columns of a map; more are drawn as means of neighbors
FAR = 0.01  # from 1, for a magnitude
Group = tuple[int, int]  # row, group in the row


@dataclass(frozen=True)
class GroupFigure:
    """Figure of a group, drawn in `unit`; a `ratio` as its base-2 logarithm, a share in %."""

    label: str
    question: str
    unit: str = ""
    ratio: bool = False
    percent: bool = False

    @property
    def title(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def column(self) -> str:
        return f"{self.label}, %" if self.percent else self.label

    def listed(self, values: np.ndarray) -> np.ndarray:
        return 100 * values if self.percent else values

    def drawn(self, values: np.ndarray) -> np.ndarray:
        if not self.ratio:
            return self.listed(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(values > 0, np.log2(values), np.nan)

    def headline(self, values: np.ndarray) -> str:
        drawn = np.abs(self.drawn(values)) if self.ratio else self.drawn(values)
        if not np.isfinite(drawn).any():
            return ""
        row, group = np.unravel_index(int(np.nanargmax(drawn)), drawn.shape)
        which = "is farthest from 1" if self.ratio else "is largest"
        said = self.say(float(values[row, group]))
        return f"{self.label} {which} in row {row}, group {group}: {said}"

    def say(self, value: float) -> str:
        return share(value, 2) if self.percent else number(value, 5 if self.ratio else 4)


FIGURES: dict[str, GroupFigure] = {
    "magnitude": GroupFigure(
        "Magnitude m",
        "Which groups did training scale up or down?",
        "log₂, 0 is unchanged",
        ratio=True,
    ),
    "scale": GroupFigure("Scale m·s", "Which groups have a coarse step size?"),
    "error": GroupFigure("Error", "Which groups are farthest from their dense weights?", "RMS"),
    "clipped": GroupFigure(
        "Clipped",
        "Where do weights lie outside the range of the grid?",
        "% of a group",
        percent=True,
    ),
}


@dataclass(frozen=True)
class GroupCells:
    """Map [rows, columns] of at most `MAX_CELLS` on a side: mean, low and high of the groups in a
    cell as drawn, first and last row and column of each cell, and in each cell the group
    farthest from the median."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]
    farthest: list[list[Group]]

    def cell_of(self, group: Group) -> tuple[int, int]:
        places = (self.rows, self.columns)
        i, j = (
            next(n for n, (first, last) in enumerate(spans) if first <= at <= last)
            for spans, at in zip(places, group, strict=True)
        )
        return i, j


def group_cells(values: np.ndarray) -> GroupCells:
    rows, columns = _spans(values.shape[0]), _spans(values.shape[1])
    shape, median = (len(rows), len(columns)), np.nanmedian(values)
    mean, low, high = np.empty(shape), np.empty(shape), np.empty(shape)
    farthest: list[list[Group]] = [[] for _ in rows]
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            part = values[top : bottom + 1, left : right + 1]
            finite = part[np.isfinite(part)] if np.isfinite(part).any() else np.array([np.nan])
            mean[i, j], low[i, j], high[i, j] = finite.mean(), finite.min(), finite.max()
            distance = np.nan_to_num(np.abs(part - median), nan=-1.0)
            row, column = np.unravel_index(np.argmax(distance), part.shape)
            farthest[i].append((top + int(row), left + int(column)))
    return GroupCells(mean, low, high, rows, columns, farthest)


def _spans(length: int) -> list[tuple[int, int]]:
    by = -(-length // MAX_CELLS)
    return [(first, min(first + by, length) - 1) for first in range(0, length, by)]


@dataclass(frozen=True)
class GroupMap:
    """Map of one figure: `values` [rows, groups] as stored, color limits `low` and `high`."""

    figure: GroupFigure
    values: np.ndarray
    cells: GroupCells
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, name: str, among: np.ndarray) -> "GroupMap":
        """Map of a key of `FIGURES`; color limits come from `among`, the last step [rows, groups],
        so that one color means the same at every step."""
        figure = FIGURES[name]
        cells = group_cells(figure.drawn(values))
        limits = color_limits(group_cells(figure.drawn(among)).mean, symmetric=figure.ratio)
        return cls(figure, values, cells, *limits)


def group_map(mapped: GroupMap, view: str, picked: Group | None) -> go.Figure:
    """Output rows down, groups of inputs across; the `picked` group's cell is outlined."""
    figure, cells = mapped.figure, mapped.cells
    x, y = [*map(_span_label, cells.columns)], [*map(_span_label, cells.rows)]
    i, j = cells.cell_of(picked) if picked else (0, 0)
    return heatmap(
        x,
        y,
        cells.mean,
        [[f"{row},{group}" for row, group in line] for line in cells.farthest],
        [[_cell_text(mapped, (i, j)) for j in range(len(x))] for i in range(len(y))],
        (mapped.low, mapped.high),
        title=figure.title,
        diverging=figure.ratio,
        view=view,
        picked=picked and [x[j], y[i]],
        xaxis=axis("Group along the inputs"),
        yaxis=axis("Output row", nticks=8),
    )


def group_map_note(mapped: GroupMap) -> str:
    """Number of groups, their spread, and cells without or beyond the colors, in words."""
    figure, values, cells = mapped.figure, mapped.values, mapped.cells
    ends = (figure.say(float(end)) for end in (np.nanmin(values), np.nanmax(values)))
    words = [f"n = {count(values.size)} groups", " to ".join(ends)]
    if figure.ratio:
        words.append(f"{share(float((np.abs(values - 1) > FAR).mean()))} more than 1 % from 1")
    if values.size > cells.mean.size:
        most = (cells.rows[0][1] + 1) * (cells.columns[0][1] + 1)
        words.append(f"means of up to {most} of them in a cell")
    if beyond := int(((cells.mean < mapped.low) | (cells.mean > mapped.high)).sum()):
        words.append(f"{beyond} cells beyond the color limits ({COLOR_PERCENTILES[1]:g} %)")
    if missing := int(np.isnan(figure.drawn(values)).sum()):
        words.append(f"{missing} without a value")
    return ", ".join(words) + "."


def _span_label(span: tuple[int, int]) -> str:
    first, last = span
    return str(first) if first == last else f"{first}–{last}"


def _cell_text(mapped: GroupMap, cell: tuple[int, int]) -> str:
    figure, values, cells, (i, j) = mapped.figure, mapped.values, mapped.cells, cell
    rows, groups = _span_label(cells.rows[i]), _span_label(cells.columns[j])
    head = f"<b>Row {rows}, group {groups}</b><br>{figure.label} "
    row, group = cells.farthest[i][j]
    if cells.low[cell] == cells.high[cell]:
        return head + figure.say(values[row, group])
    return (
        f"{head}on average {number(cells.mean[cell])} {figure.unit}"
        f"<br>{number(cells.low[cell])} to {number(cells.high[cell])}"
        f"<br>farthest: row {row}, group {group}"
    )
