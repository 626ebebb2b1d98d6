"""Decoders side by side: how fast they are, and where the time of a pass goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import plotly.graph_objects as go

from jobs.speed_words import VANILLA, Arm
from ui.charts.layout import axis, layout, legend
from ui.theme import LIGHT, OKABE_ITO

ROOM, MORE_ROOM = 1.25, 1.6  # times the longest bar, for the words beside it
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {  # part of a pass -> words, colour
        "draft": ("Draft", "#E69F00"),
        "verify": ("Verify", "#0072B2"),
        "accept": ("Accept", "#009E73"),
        "cache": ("Cache", "#CC79A7"),
    }
)


def colours(arms: Sequence[Arm]) -> dict[str, str]:
    """Name -> colour, in the order of the names so that no figure changes them; vanilla is grey."""
    others = sorted(arm.name for arm in arms if arm.name != VANILLA)
    pairs = {name: OKABE_ITO[n % len(OKABE_ITO)] for n, name in enumerate(others)}
    return {VANILLA: LIGHT.muted, **pairs}


def lines(arm: Arm) -> str:
    """What a decoder is called beside its bar: a narrow screen has little room."""
    return f"{arm.kind}<br>{arm.name}" if arm.kind else arm.label


def speed_bars(arms: Sequence[Arm], task: str = "") -> go.Figure:
    """Speed-up of each decoder over vanilla; the lowest and highest round as a line through it.

    Args:
        task: one task's prompts alone; "" all of them.
    """
    values = [arm.tasks[task][0] if task else arm.speed_up for arm in arms]
    metric = f"speed_up/{task}" if task else "speed_up"
    ranges = [arm.ranges.get(metric, (v, v)) for arm, v in zip(arms, values, strict=True)]
    paint = colours(arms)
    bars = go.Bar(
        x=values,
        y=[lines(arm) for arm in arms],
        orientation="h",
        width=0.5,
        marker={"color": [paint[arm.name] for arm in arms]},
        error_x={
            "type": "data", "symmetric": False, "color": LIGHT.text, "thickness": 1, "width": 4,
            "array": [high - v for v, (_, high) in zip(values, ranges, strict=True)],
            "arrayminus": [v - low for v, (low, _) in zip(values, ranges, strict=True)],
        },
        customdata=[[*span, arm.accepted] for arm, span in zip(arms, ranges, strict=True)],
        hovertemplate="<b>%{y}</b><br>%{x:.2f}× (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<br>%{customdata[2]:.2f} tokens a pass<extra></extra>",
    )  # fmt: skip
    furthest = max(high for _, high in ranges)
    figure = go.Figure(bars, _bar_layout(f"speed {task}", "Speed-up over vanilla, ×", furthest))
    even = {"color": LIGHT.muted, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", x0=1, x1=1, y0=0, y1=1, yref="paper", line=even)
    for value, (_, high), arm in zip(values, ranges, arms, strict=True):
        _beside(figure, high, lines(arm), f"{value:.2f}×")
    return figure


def time_bars(arms: Sequence[Arm]) -> go.Figure:
    """Mean milliseconds of one pass, by its parts; what a pass yields stands beside."""
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
    figure = go.Figure(traces, _bar_layout("time", "Milliseconds of a pass", max(whole), MORE_ROOM))
    figure.update_layout(
        barmode="stack",
        showlegend=True,
        legend=legend(orientation="h", traceorder="normal"),
        margin={"t": 32},
    )
    for total, arm in zip(whole, arms, strict=True):
        tokens = "1 token" if arm.name == VANILLA else f"{arm.accepted:.2f} tokens"
        _beside(figure, total, lines(arm), f"{total:.1f} ms for {tokens}")
    return figure


def _bar_layout(view: str, title: str, furthest: float, room: float = ROOM) -> dict[str, object]:
    return layout(
        view=view,
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
