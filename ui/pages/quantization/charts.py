"""Every group of one tensor: a map of a figure, one group over training, and how codes are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from backend.statistics.names import FAN
from ui.charts.heatmap import DIVERGING, ROBUST, colour_bar, colour_limits, even_ticks
from ui.charts.template import axis, layout, legend, tint
from ui.format import NONE, count, number, share
from ui.theme import LIGHT, stage_style

MOST = 128  # rows and columns of a map; more are drawn as means of neighbours
FAR = 0.01  # from 1, for a magnitude
Group = tuple[int, int]  # row, group in the row


@dataclass(frozen=True)
class GroupFigure:
    """One figure of a group.

    Attributes:
        unit: of what is drawn.
        ratio: drawn as the base-2 logarithm, centred on 1.
        percent: stored as a share, drawn in per cent.
    """

    label: str
    question: str
    unit: str = ""
    ratio: bool = False
    percent: bool = False

    @property
    def title(self) -> str:
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def drawn(self, values: np.ndarray) -> np.ndarray:
        """Stored values as they are drawn; what has no logarithm is missing."""
        if self.ratio:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(values > 0, np.log2(values), np.nan)
        return 100 * values if self.percent else values

    def say(self, value: float) -> str:
        """A stored value in words."""
        return share(value, 2) if self.percent else number(value, 5 if self.ratio else 4)


FIGURES: dict[str, GroupFigure] = {
    "magnitude": GroupFigure(
        "Magnitude m", "Which groups did training scale up or down?", "log₂, 0 is unchanged",
        ratio=True,
    ),
    "scale": GroupFigure("Scale m·s", "Which groups have coarse steps between their codes?"),
    "error": GroupFigure("Error", "Which groups are farthest from their dense weights?", "RMS"),
    "clipped": GroupFigure(
        "Clipped", "Where do weights lie outside of the grid's range?", "% of a group",
        percent=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class GroupCells:
    """A map [rows, columns] of at most `MOST` on a side.

    Attributes:
        mean, low, high: of the groups in a cell, as they are drawn.
        rows, columns: first and last of each cell.
        farthest: of each cell, the group whose figure is farthest from what is usual.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]
    farthest: list[list[Group]]

    def of(self, group: Group) -> tuple[int, int]:
        """The cell a group is in."""
        places = (self.rows, self.columns)
        i, j = (
            next(n for n, (first, last) in enumerate(spans) if first <= at <= last)
            for spans, at in zip(places, group, strict=True)
        )
        return i, j


def cells(values: np.ndarray) -> GroupCells:
    """The map of `values` [rows, groups]."""
    rows, columns = _spans(values.shape[0]), _spans(values.shape[1])
    usual, shape = np.nanmedian(values), (len(rows), len(columns))
    mean, low, high = np.empty(shape), np.empty(shape), np.empty(shape)
    farthest: list[list[Group]] = []
    for i, (top, bottom) in enumerate(rows):
        farthest.append([])
        for j, (left, right) in enumerate(columns):
            part = values[top : bottom + 1, left : right + 1]
            held = part[np.isfinite(part)]
            if not held.size:
                held = np.array([np.nan])
            mean[i, j], low[i, j], high[i, j] = held.mean(), held.min(), held.max()
            far = np.nan_to_num(np.abs(part - usual), nan=-1.0)
            r, c = np.unravel_index(np.argmax(far), part.shape)
            farthest[-1].append((top + int(r), left + int(c)))
    return GroupCells(mean, low, high, rows, columns, farthest)


def _spans(length: int) -> list[tuple[int, int]]:
    by = -(-length // MOST)
    return [(first, min(first + by, length) - 1) for first in range(0, length, by)]


@dataclass(frozen=True)
class GroupMap:
    """One figure of every group, as it is drawn.

    Attributes:
        values: [rows, groups] as stored.
        low, high: the limits of the colours.
    """

    figure: GroupFigure
    values: np.ndarray
    shown: GroupCells
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, name: str, among: np.ndarray) -> GroupMap:
        """The figure `name`, a key of `FIGURES`.

        Args:
            among: [rows, groups] of the last step, which gives the colours their limits: one
                colour means the same at every step.
        """
        figure = FIGURES[name]
        shown = cells(figure.drawn(values))
        limits = colour_limits(cells(figure.drawn(among)).mean, even=figure.ratio)
        return cls(figure, values, shown, *limits)


def group_map(mapped: GroupMap, view: str, picked: Group | None) -> go.Figure:
    """Output rows from top to bottom, groups along the inputs from left to right.

    Args:
        picked: the group whose cell is outlined.
    """
    figure, shown = mapped.figure, mapped.shown
    x, y = [_named(span) for span in shown.columns], [_named(span) for span in shown.rows]
    heat = go.Heatmap(
        x=x,
        y=y,
        z=[[None if np.isnan(v) else float(v) for v in line] for line in shown.mean],
        customdata=[[f"{row},{group}" for row, group in line] for line in shown.farthest],
        text=_hover(shown, figure, mapped.values),
        hovertemplate="%{text}<extra></extra>",
        colorscale=DIVERGING if figure.ratio else "cividis",
        zmin=mapped.low,
        zmax=mapped.high,
        colorbar=colour_bar(figure.title) | (even_ticks(mapped.high) if figure.ratio else {}),
    )
    meta: dict[str, object] = {"pick": "cell"}
    if picked is not None:
        i, j = shown.of(picked)
        meta["picked"] = [x[j], y[i]]
    across = axis("Group along the inputs", type="category", showgrid=False, nticks=12)
    across["title"] |= {"standoff": 20}  # else it stands between the ticks
    down = axis("Output row", type="category", showgrid=False, autorange="reversed", nticks=8)
    return go.Figure(heat, layout(view=view, meta=meta, xaxis=across, yaxis=down))


def group_map_note(mapped: GroupMap) -> str:
    """In words: how many groups, their spread, and what the colours leave out."""
    figure, values, shown = mapped.figure, mapped.values, mapped.shown
    ends = (figure.say(float(end)) for end in (np.nanmin(values), np.nanmax(values)))
    words = [f"n = {count(values.size)} groups", " to ".join(ends)]
    if figure.ratio:
        words.append(f"{share(float((np.abs(values - 1) > FAR).mean()))} more than 1 % from 1")
    if values.size > shown.mean.size:
        most = (shown.rows[0][1] + 1) * (shown.columns[0][1] + 1)
        words.append(f"means of up to {most} of them in a cell")
    if beyond := int(((shown.mean < mapped.low) | (shown.mean > mapped.high)).sum()):
        words.append(f"{beyond} cells beyond the colour limits ({ROBUST[1]:g} %)")
    if missing := int(np.isnan(figure.drawn(values)).sum()):
        words.append(f"{missing} without a value")
    return ", ".join(words) + "."


def _named(span: tuple[int, int]) -> str:
    first, last = span
    return str(first) if first == last else f"{first}–{last}"


def _hover(shown: GroupCells, figure: GroupFigure, values: np.ndarray) -> list[list[str]]:
    words: list[list[str]] = []
    for i, line in enumerate(shown.farthest):
        words.append([])
        for j, (row, group) in enumerate(line):
            rows, groups = _named(shown.rows[i]), _named(shown.columns[j])
            said = f"<b>Row {rows}, group {groups}</b><br>{figure.label} "
            if shown.low[i, j] == shown.high[i, j]:
                said += figure.say(values[row, group])
            else:
                said += f"on average {number(shown.mean[i, j])} {figure.unit}"
                said += f"<br>{number(shown.low[i, j])} to {number(shown.high[i, j])}"
                said += f"<br>farthest: row {row}, group {group}"
            words[-1].append(said)
    return words


# over training ------------------------------------------------------------------------------------


def magnitude_bands(quantiles: Mapping[str, Mapping[int, float]], stage: str) -> go.Figure:
    """Magnitudes of all groups of the model, step by step: bands of quantiles and the median.

    Args:
        quantiles: name such as "p05" -> step -> value.
    """
    colour = stage_style(stage).colour
    lines, names = [], [*FAN]
    for low, high in zip(names[: len(names) // 2], names[: len(names) // 2 : -1], strict=True):
        upper, lower = quantiles.get(high, {}), quantiles.get(low, {})
        steps = sorted(upper.keys() & lower.keys())
        name = f"{int(low[1:])} to {int(high[1:])} % of groups"
        lines.append(_edge([*steps], [lower[s] for s in steps], None, name, colour))
        lines.append(_edge([*steps], [upper[s] for s in steps], "tonexty", name, colour))
    middle = quantiles.get("p50", {})
    lines.append(
        go.Scatter(
            x=sorted(middle), y=[middle[s] for s in sorted(middle)], name="Median", mode="lines",
            line={"color": colour, "width": 2}, hovertemplate="Median %{y:.5f}<extra></extra>",
        )
    )  # fmt: skip
    return go.Figure(
        lines,
        layout(
            view=f"{stage}/fan", top=32, hovermode="x unified", showlegend=True,
            legend=legend(orientation="h"),
            xaxis=axis("Step", showgrid=False), yaxis=axis("Magnitude m", nticks=6),
            shapes=[_one()],
        ),
    )  # fmt: skip


def _edge(
    steps: list[int], values: list[float], fill: str | None, name: str, colour: str
) -> go.Scatter:
    return go.Scatter(
        x=steps, y=values, name=name, legendgroup=name, mode="lines", fill=fill,
        showlegend=fill is not None, fillcolor=tint(colour, 0.18),
        line={"width": 0, "color": colour}, hovertemplate="%{y:.5f}<extra>" + name + "</extra>",
    )  # fmt: skip


def _one() -> dict[str, object]:
    """The line of magnitudes that have not moved."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "layer": "below",
        "line": {"color": LIGHT.muted, "dash": "dash", "width": 1},
    }  # fmt: skip


def group_history(steps: Mapping[int, np.ndarray], group: Group, stage: str) -> go.Figure:
    """The magnitude of one group over training, among those of its tensor (5 to 95 %).

    Args:
        steps: step -> magnitudes [rows, groups].
    """
    at, stroke = sorted(steps), stage_style(stage)
    bands = [np.quantile(steps[s], (0.05, 0.95)) for s in at]
    name = "5 to 95 % of this tensor"
    own = go.Scatter(
        x=at, y=[float(steps[s][group]) for s in at], name="This group", mode="lines+markers",
        line={"color": stroke.colour, "width": 2}, hovertemplate="m %{y:.5f}<extra></extra>",
    )  # fmt: skip
    grey = LIGHT.muted
    return go.Figure(
        [
            _edge(at, [float(b[0]) for b in bands], None, name, grey),
            _edge(at, [float(b[1]) for b in bands], "tonexty", name, grey),
            own,
        ],
        layout(
            view=f"{stage}/history", top=32, hovermode="x unified", showlegend=True,
            legend=legend(orientation="h"), shapes=[_one()],
            xaxis=axis("Step", showgrid=False), yaxis=axis("Magnitude m", nticks=6),
        ),
    )  # fmt: skip


def code_usage(usage: Mapping[int, np.ndarray], stage: str) -> go.Figure:
    """How often each code is used in one tensor, before training and after.

    Args:
        usage: step -> counts [2^bits].
    """
    at = sorted({min(usage), max(usage)}) if usage else []
    colours = [LIGHT.muted, stage_style(stage).colour]
    bars = [
        go.Bar(
            x=list(range(len(usage[step]))),
            y=(100 * usage[step] / usage[step].sum()).tolist(),
            customdata=usage[step].tolist(),
            name=f"Step {step}",
            marker={"color": colour},
            hovertemplate=f"Step {step}: %{{y:.2f}} %, n = %{{customdata:,.0f}}<extra></extra>",
        )
        for step, colour in zip(at, colours[-len(at) :], strict=True)
    ]
    return go.Figure(
        bars,
        layout(
            view=f"{stage}/codes", top=32, showlegend=len(bars) > 1, barmode="group", bargap=0.15,
            legend=legend(orientation="h"), hovermode="x unified",
            xaxis=axis("Code", showgrid=False, nticks=16), yaxis=axis("Share of weights, %"),
        ),
    )  # fmt: skip


def code_usage_note(usage: Mapping[int, np.ndarray]) -> str:
    """In words: how many weights, how many codes are used, and the bits a code carries."""
    if not usage:
        return ""
    last = usage[max(usage)]
    used = last[last > 0] / last.sum()
    entropy = float(-(used * np.log2(used)).sum()) if len(used) else float("nan")
    bits = f"{entropy:.2f}" if len(used) else NONE
    return (
        f"n = {count(int(last.sum()))} weights; {len(used)} of {len(last)} codes are used and "
        f"carry {bits} of {int(np.log2(len(last)))} bits each."
    )


# weight by weight ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupWeights:
    """One group, weight by weight.

    Attributes:
        dense, moved: the weights before and on the grid.
        points: of the grid, ascending.
    """

    dense: np.ndarray
    moved: np.ndarray
    points: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        return self.moved - self.dense

    @property
    def half(self) -> float:
        """Half a step of the grid: how far plain rounding moves a weight at most."""
        return float(self.points[1] - self.points[0]) / 2

    @property
    def beyond(self) -> int:
        """Dense weights outside of the grid by more than half a step."""
        low, high = self.points[0] - self.half, self.points[-1] + self.half
        return int(((self.dense < low) | (self.dense > high)).sum())

    @property
    def elsewhere(self) -> int:
        """Weights that are not at the point of the grid nearest to their dense value."""
        nearest = self.points[np.abs(self.dense[:, None] - self.points).argmin(axis=1)]
        return int((np.abs(self.moved - nearest) > self.half).sum())


def group_weights(shown: GroupWeights, view: str, stage: str) -> go.Figure:
    """Dense weights against how far the grid moved them; a line for each point of the grid, a band
    for what plain rounding would have done."""
    dots = go.Scatter(
        x=shown.dense.tolist(), y=shown.residual.tolist(), customdata=shown.moved.tolist(),
        mode="markers", marker={"size": 7, "color": stage_style(stage).colour},
        hovertemplate="Dense %{x:.5f}<br>now %{customdata:.5f}<br>moved by %{y:.5f}<extra></extra>",
    )  # fmt: skip
    lines: list[dict[str, object]] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": p, "x1": p, "layer": "below",
         "line": {"color": LIGHT.muted, "width": 1, "dash": "dot"}}
        for p in shown.points.tolist()
    ]  # fmt: skip
    band: dict[str, object] = {
        "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -shown.half, "y1": shown.half,
        "layer": "below", "fillcolor": tint(LIGHT.muted, 0.12), "line": {"width": 0},
    }  # fmt: skip
    ends = np.concatenate([shown.points, shown.dense])
    reach = [float(ends.min() - shown.half), float(ends.max() + shown.half)]
    across = axis("Dense weight (dotted: the grid)", showgrid=False, nticks=6, range=reach)
    return go.Figure(
        dots,
        layout(view=view, shapes=[band, *lines], xaxis=across, yaxis=axis("Moved by", nticks=5)),
    )


def group_weights_note(shown: GroupWeights) -> str:
    """In words: how many weights, and how many plain rounding would not have put where they are."""
    words = f"n = {count(len(shown.dense))} weights on {len(np.unique(shown.moved))} of "
    words += f"{len(shown.points)} points; {shown.beyond} of the dense ones beyond the ends, "
    return f"{words}{shown.elsewhere} not at the nearest point."
