"""How many tokens a pass yields, how far ahead guesses are right, and what the tree's size does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.speed.report import VANILLA, DecoderReport
from ui.charts.template import axis, layout, legend, rows_of_legend
from ui.format import esc
from ui.pages.speed.bars import colours
from ui.theme import BLUE, LIGHT

ACCEPTED, SPEED_UP, EVEN = "accepted", "speed-up", "break even"
PANELS = ((ACCEPTED, 1, "solid"), (EVEN, 1, "dot"), (SPEED_UP, 2, "solid"))
AXES = ("xaxis", "xaxis2", "yaxis", "yaxis2")
TICKS = tuple(2**n for n in range(9))  # of sizes, on a log axis


def reached(arm: DecoderReport, conditional: bool = False) -> dict[int, float]:
    """k -> the share of passes in which at least k guesses were right, k = 1, 2, …

    Args:
        conditional: of the passes in which k - 1 were.
    """
    deepest = max(arm.lengths, default=1)
    found = [
        sum(count for length, count in arm.lengths.items() if length > k) for k in range(deepest)
    ]
    whole = found[0] or 1
    return {k: found[k] / (found[k - 1] if conditional else whole) for k in range(1, deepest)}


def accepted_lengths(arms: Sequence[DecoderReport]) -> go.Figure:
    """Share of passes by the tokens they yielded."""
    paint, figure = colours(arms), go.Figure()
    drafting = [arm for arm in arms if arm.name != VANILLA]
    for arm in drafting:
        passes = sum(arm.lengths.values()) or 1
        figure.add_bar(
            x=[*arm.lengths],
            y=[100 * count / passes for count in arm.lengths.values()],
            name=esc(arm.label),
            marker={"color": paint[arm.name]},
            hovertemplate="<b>%{fullData.name}</b><br>%{x} tokens: %{y:.1f} % of "
            f"{passes:,} passes; mean {arm.accepted:.2f}<extra></extra>",
        )
    figure.update_layout(
        layout(
            view="lengths", **rows_of_legend(len(drafting)), barmode="group", showlegend=True,
            legend=legend(),
            xaxis=axis("Tokens a pass yields (vanilla: 1)", dtick=1, showgrid=False),
            yaxis=axis("Share of passes, %", rangemode="tozero"),
        )
    )  # fmt: skip
    return figure


def guesses_right(arms: Sequence[DecoderReport], conditional: bool = False) -> go.Figure:
    """Share of passes in which at least k guesses were right, over k (see `reached`)."""
    paint, figure = colours(arms), go.Figure()
    drafting = [arm for arm in arms if arm.name != VANILLA]
    for arm in drafting:
        found = reached(arm, conditional)
        figure.add_scatter(
            x=[*found], y=[100 * share for share in found.values()], name=esc(arm.label),
            mode="lines+markers", line={"color": paint[arm.name], "width": 2},
            marker={"size": 8, "color": paint[arm.name]}, cliponaxis=False,
            hovertemplate="<b>%{fullData.name}</b><br>%{x} or more right: %{y:.1f} % of passes"
            f"{' that got so far' if conditional else ''}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        layout(
            view=f"right {conditional}", **rows_of_legend(len(drafting)), showlegend=True,
            legend=legend(),
            xaxis=axis("Guesses right in a row, at least", dtick=1, showgrid=False),
            yaxis=axis("Share of those passes, %" if conditional else "Share of passes, %",
                       rangemode="tozero"),
        )
    )  # fmt: skip
    return figure


def sizes_of(curves: pd.DataFrame, run: str) -> dict[str, pd.Series]:
    """Curve -> values by tree size, of one drafter; nothing where sizes were not tried."""
    names = {name: f"{run}/{name}" for name in (ACCEPTED, SPEED_UP, EVEN)}
    rows = {name: curves[curves["name"] == full] for name, full in names.items()}
    return {name: found.set_index("step")["value"] for name, found in rows.items() if len(found)}


def tree_sizes(curves: pd.DataFrame, arms: Sequence[DecoderReport]) -> go.Figure:
    """Two panels over the size of the tree: tokens a pass with its break-even, and below them the
    speed-up."""
    paint = colours(arms)
    figure = make_subplots(rows=2, cols=1, vertical_spacing=0.08)
    tried = [(arm, found) for arm in arms if (found := sizes_of(curves, arm.name))]
    for arm, found in tried:
        for name, row, dash in PANELS:
            line = _line(found[name], esc(arm.label), name, paint[arm.name], dash)
            figure.add_trace(line, row=row, col=1)
    size = axis("Nodes of the tree (log axis)", type="log", **_ticks(), showgrid=False)
    upper = {**size, "title": None, "showticklabels": False, "matches": "x2"}
    places = {name: figure.layout[name].to_plotly_json() for name in AXES}
    wanted = (upper, size, axis("Tokens a pass", nticks=5), axis("Speed-up, ×", nticks=5))
    both = {name: {**places[name], **new} for name, new in zip(AXES, wanted, strict=True)}
    room = rows_of_legend(len(tried))
    figure.update_layout(layout(view="sizes", **room, showlegend=True, legend=legend()) | both)
    return figure


def _ticks() -> dict[str, list[object]]:
    """Powers of two."""
    return {"tickvals": [*TICKS], "ticktext": [str(n) for n in TICKS]}


def _line(values: pd.Series, label: str, name: str, colour: str, dash: str) -> go.Scatter:
    solid = dash == "solid"
    return go.Scatter(
        x=[int(n) for n in values.index], y=[*values], name=label, mode="lines+markers",
        legendgroup=label, showlegend=name == ACCEPTED,
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 7, "color": colour if solid else LIGHT.paper,
                "line": {"color": colour, "width": 2}},
        hovertemplate=f"<b>{label}</b><br>%{{x}} nodes, {name}: %{{y:.2f}}<extra></extra>",
        cliponaxis=False,
    )  # fmt: skip


def pass_costs(costs: Mapping[int, float]) -> go.Figure:
    """What a pass over n tokens takes, in passes over one."""
    sizes = [*costs]
    line = go.Scatter(
        x=sizes, y=[*costs.values()], mode="lines+markers", line={"color": BLUE, "width": 2},
        marker={"size": 8}, hovertemplate="%{x} tokens: %{y:.2f} passes<extra></extra>",
        cliponaxis=False,
    )  # fmt: skip
    return go.Figure(
        line,
        layout(
            view="costs",
            xaxis=axis("Tokens verified at once (log axis)", type="log", **_ticks(),
                       showgrid=False),
            yaxis=axis("Time, in passes over one token", rangemode="tozero"),
        ),
    )  # fmt: skip
