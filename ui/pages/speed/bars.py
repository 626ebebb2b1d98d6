"""Decoders side by side: how fast they are, and where the time of a pass goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import plotly.graph_objects as go

from jobs.speed.report import VANILLA, DecoderReport
from ui.charts.template import axis, layout, legend, rows_of_legend
from ui.format import esc
from ui.theme import BLUE, BROWN, GREEN, LIGHT, OKABE_ITO, ORANGE, PINK, PURPLE

PAINT = (*OKABE_ITO, PURPLE, BROWN)
BAR, FEW_BARS = 40, 5  # pixels of a bar with its name; so many fit a view as it is
ROOM, MORE_ROOM = 1.4, 1.9  # times the longest bar, for the words beside it
SPREAD = 0.6  # of a task's row, over which its dots are spread
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # part of a pass -> words, colour
        "draft": ("Draft", ORANGE),
        "verify": ("Verify", BLUE),
        "accept": ("Accept", GREEN),
        "cache": ("Cache", PINK),
    }
)


def colours(arms: Sequence[DecoderReport]) -> dict[str, str]:
    """Name -> colour, in the order of the names so that no figure changes them; vanilla is grey."""
    others = sorted(arm.name for arm in arms if arm.name != VANILLA)
    pairs = {name: PAINT[n % len(PAINT)] for n, name in enumerate(others)}
    return {VANILLA: LIGHT.muted, **pairs}


def lines(arm: DecoderReport) -> str:
    """What a decoder is called beside its bar: a narrow screen has little room."""
    return f"{esc(arm.title)}<br>{esc(arm.run)}" if arm.kind else esc(arm.label)


def speed_bars(arms: Sequence[DecoderReport]) -> go.Figure:
    """Speed-up of each decoder over vanilla; the lowest and highest round as a line through it."""
    values = [arm.speed_up for arm in arms]
    ranges = [arm.ranges.get("speed_up", (arm.speed_up, arm.speed_up)) for arm in arms]
    paint = colours(arms)
    bars = go.Bar(
        x=values,
        y=[lines(arm) for arm in arms],
        orientation="h",
        width=0.5,
        marker={"color": [paint[arm.name] for arm in arms]},
        error_x=_spread(values, ranges, LIGHT.text),
        customdata=[[*span, arm.accepted] for arm, span in zip(arms, ranges, strict=True)],
        hovertemplate="<b>%{y}</b><br>%{x:.2f}× (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<br>%{customdata[2]:.2f} tokens a pass<extra></extra>",
    )
    furthest = max(high for _, high in ranges)
    looks = _bar_layout("speed", "Speed-up over vanilla, ×", furthest, len(arms))
    figure = go.Figure(bars, looks)
    _line_at_one(figure)
    for value, (_, high), arm in zip(values, ranges, arms, strict=True):
        _beside(figure, high, lines(arm), f"{value:.2f}×")
    return figure


def yield_bars(arms: Sequence[DecoderReport]) -> go.Figure:
    """Tokens a pass of each decoder as a bar, its break-even as a mark: beyond it, it gains."""
    names, paint = [lines(arm) for arm in arms], colours(arms)
    bars = go.Bar(
        x=[arm.accepted for arm in arms],
        y=names,
        orientation="h",
        width=0.5,
        marker={"color": [paint[arm.name] for arm in arms]},
        hovertemplate="<b>%{y}</b><br>%{x:.2f} tokens a pass<extra></extra>",
    )
    marks = go.Scatter(
        x=[arm.break_even for arm in arms],
        y=names,
        mode="markers",
        marker={"symbol": "line-ns", "size": 32, "line": {"width": 3, "color": LIGHT.text}},
        hovertemplate="<b>%{y}</b><br>even at %{x:.2f} tokens a pass<extra></extra>",
    )
    furthest = max(max(arm.accepted, arm.break_even) for arm in arms)
    looks = _bar_layout("yield", "Tokens a pass", furthest, len(arms))
    figure = go.Figure([bars, marks], looks)
    for arm in arms:
        _beside(figure, max(arm.accepted, arm.break_even), lines(arm), f"{arm.accepted:.2f}")
    return figure


def task_dots(arms: Sequence[DecoderReport], accepted: bool) -> go.Figure:
    """Each task a row, each decoder a dot in it: its speed-up with the range of its rounds.

    Args:
        accepted: tokens a pass instead.
    """
    tasks, paint = [*arms[0].tasks], colours(arms)
    drafting = [arm for arm in arms if arm.name != VANILLA]
    figure = go.Figure()
    for place, arm in enumerate(drafting):
        values = [arm.tasks[task][accepted] for task in tasks]
        ranges = [
            arm.ranges.get(f"speed_up/{task}", (v, v))
            for task, v in zip(tasks, values, strict=True)
        ]
        shift = SPREAD * ((place + 0.5) / len(drafting) - 0.5)
        figure.add_scatter(
            x=values, y=[row + shift for row in range(len(tasks))], name=esc(arm.label),
            mode="markers", marker={"size": 9, "color": paint[arm.name]}, cliponaxis=False,
            error_x=None if accepted else _spread(values, ranges, paint[arm.name]),
            customdata=[esc(task.replace("_", " ")) for task in tasks],
            hovertemplate="<b>%{customdata}</b><br>%{fullData.name}: %{x:.2f}<extra></extra>",
        )  # fmt: skip
    title = "Tokens a pass (vanilla: 1)" if accepted else "Speed-up over vanilla, ×"
    rows: dict[str, Any] = {
        "tickvals": [*range(len(tasks))],
        "ticktext": [esc(t.replace("_", " ")) for t in tasks],
    }
    figure.update_layout(
        layout(
            view=f"tasks {accepted}", **rows_of_legend(len(drafting)), showlegend=True,
            legend=legend(), xaxis=axis(title),
            yaxis=axis(**rows, range=[len(tasks) - 0.5, -0.5], showgrid=False,
                       tickfont={"size": 12, "color": LIGHT.text}),
        )
    )  # fmt: skip
    _line_at_one(figure)
    return figure


def _spread(
    values: Sequence[float], ranges: Sequence[tuple[float, float]], colour: str
) -> dict[str, object]:
    """Lines from the lowest to the highest round."""
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1, "width": 4,
        "array": [high - v for v, (_, high) in zip(values, ranges, strict=True)],
        "arrayminus": [v - low for v, (low, _) in zip(values, ranges, strict=True)],
    }  # fmt: skip


def _line_at_one(figure: go.Figure) -> None:
    """Vanilla, dashed."""
    even = {"color": LIGHT.muted, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", x0=1, x1=1, y0=0, y1=1, yref="paper", line=even)


def time_bars(arms: Sequence[DecoderReport]) -> go.Figure:
    """Mean milliseconds of one pass, by its parts; those of a token stand beside."""
    names = [lines(arm) for arm in arms]
    traces = [
        go.Bar(
            x=[arm.milliseconds.get(part, 0.0) for arm in arms],
            y=names,
            name=words,
            orientation="h",
            width=0.5,
            marker={"color": colour},
            hovertemplate=f"<b>%{{y}}</b><br>{words}: %{{x:.2f}} ms<extra></extra>",
        )
        for part, (words, colour) in PARTS.items()
    ]
    whole = [sum(arm.milliseconds.values()) for arm in arms]
    looks = _bar_layout("time", "Milliseconds of a pass", max(whole), len(arms), MORE_ROOM)
    figure = go.Figure(traces, looks)
    figure.update_layout(
        barmode="stack",
        showlegend=True,
        legend=legend(orientation="h", traceorder="normal"),
        margin={"t": 32},
    )
    for total, arm in zip(whole, arms, strict=True):
        _beside(figure, total, lines(arm), f"{total / arm.accepted:.1f} ms/token")
    return figure


def _bar_layout(
    view: str, title: str, furthest: float, bars: int, room: float = ROOM
) -> dict[str, object]:
    return layout(
        view=view,
        more=BAR * max(0, bars - FEW_BARS),
        xaxis=axis(title, range=[0, room * furthest], rangemode="tozero"),
        yaxis=axis(
            type="category", autorange="reversed", showgrid=False,
            tickfont={"size": 12, "color": LIGHT.text},
        ),
    )  # fmt: skip


def _beside(figure: go.Figure, x: float, y: str, words: str) -> None:
    figure.add_annotation(
        x=x, y=y, text=words, showarrow=False, xanchor="left", xshift=8,
        font={"size": 12, "color": LIGHT.text},
    )  # fmt: skip
