"""Several runs in one picture: their curves, and the perplexity of their stages.

A run has one colour, by its place among the runs compared; the baseline is grey and dashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ui.charts.stages import in_lines
from ui.charts.template import axis, layout, legend, log_axis
from ui.runs.results import RunResults
from ui.theme import LIGHT, OKABE_ITO, YELLOW, LineStyle

MOST_POINTS = 2000  # of a line
MARKED = 60
FEW_STEPS = 12
SMOOTHING = {"none": 0.0, "some": 0.6, "strong": 0.9}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
COLOURS = [c for c in OKABE_ITO if c != YELLOW]  # yellow cannot be seen on white
BASELINE = LineStyle(LIGHT.muted, "dash")


def strokes(runs: Sequence[str], base: str) -> dict[str, LineStyle]:
    """Run -> how it is drawn everywhere in a comparison."""
    others = [run for run in runs if run != base]
    coloured = {run: LineStyle(COLOURS[i % len(COLOURS)]) for i, run in enumerate(others)}
    return {run: coloured.get(run, BASELINE) for run in runs}


def overlaid(
    points: Mapping[str, pd.DataFrame],
    drawn: Mapping[str, LineStyle],
    *,
    x_title: str,
    y_title: str,
    log_y: bool = False,
    smoothing: float = 0.0,
    view: str = "",
) -> go.Figure:
    """One curve of several runs; smoothed ones keep the raw values as a faint line.

    Args:
        points: run -> its points, columns step and value.
        smoothing: weight of what came before, 0 to 0.99.
    """
    lines: list[go.Scatter] = []
    for run, of_run in points.items():
        x, y = thinned(of_run["step"].to_numpy(), of_run["value"].to_numpy(dtype=float))
        smooth = smoothed(of_run["value"].to_numpy(dtype=float), smoothing)
        if smoothing:
            lines.append(_line(run, x, y, drawn[run], ghost=True))
            x, y = thinned(of_run["step"].to_numpy(), smooth)
        lines.append(_line(run, x, y, drawn[run]))
    y_axis = axis(f"{y_title} (log axis)" if log_y else y_title, nticks=5)
    longest = max((int(of_run["step"].max()) for of_run in points.values()), default=0)
    steps = {"dtick": 1} if longest < FEW_STEPS else {}
    return go.Figure(
        lines,
        layout(
            view=view,
            top=32,
            xaxis=axis(x_title, showgrid=False, **steps),
            yaxis=y_axis | ({"type": "log"} if log_y else {"rangemode": "tozero"}),
            hovermode="x unified",
            showlegend=True,
            legend=legend(orientation="h"),
        ),
    )


def _line(
    run: str, x: np.ndarray, y: np.ndarray, stroke: LineStyle, ghost: bool = False
) -> go.Scatter:
    return go.Scatter(
        x=x.tolist(),
        y=y.tolist(),
        name=run,
        legendgroup=run,
        showlegend=not ghost,
        opacity=0.25 if ghost else 1.0,
        mode="lines+markers" if len(x) <= MARKED and not ghost else "lines",
        line={"color": stroke.colour, "dash": stroke.dash, "width": 1 if ghost else 2},
        marker={"size": 5},
        hoverinfo="skip" if ghost else None,
        hovertemplate=None if ghost else "%{y:.4g}<extra>" + run + "</extra>",
    )


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points: of each stretch the lowest and the highest, in order."""
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS // 2 + 1).astype(int)
    stretches = [np.arange(a, b) for a, b in pairwise(edges)]
    kept = np.unique([i for s in stretches for i in (s[y[s].argmin()], s[y[s].argmax()])])
    return x[kept], y[kept]


def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average without the pull of its start:

    s_t = w s_{t-1} + (1 - w) y_t,    shown: s_t / (1 - w^t)
    """
    if not weight or not len(y):
        return y
    found, held = np.empty_like(y), 0.0
    for t, value in enumerate(y, 1):
        held = weight * held + (1 - weight) * value
        found[t - 1] = held / (1 - weight**t)
    return found


def stage_dots(
    figures: Mapping[str, RunResults], drawn: Mapping[str, LineStyle], labels: Mapping[str, str]
) -> go.Figure:
    """Perplexity of every stage of every run: a row a stage, a colour and a sign a run.

    Args:
        figures: run -> its figures, all measured on the same text.
        labels: stage -> label, from top to bottom.
    """
    held = [s for s in labels if any(f.value(s, "perplexity") for f in figures.values())]
    lines = {s: in_lines(labels[s]) for s in held}
    values = [f.value(s, "perplexity") for f in figures.values() for s in held]
    known = np.log10([v for v in values if v])
    room = max(float(np.ptp(known)) if len(known) else 0.0, 0.05)
    span = [float(known.min()) - 0.1 * room, float(known.max()) + 0.1 * room] if len(known) else []
    return go.Figure(
        [_dots(run, figures[run], lines, drawn[run], SYMBOLS[i % len(SYMBOLS)])
         for i, run in enumerate(figures)],
        layout(
            view="stages",
            top=32,
            xaxis=log_axis("Perplexity", span, showgrid=False, tickangle=0),
            yaxis=axis(
                autorange="reversed", type="category", categoryorder="array",
                categoryarray=[*lines.values()],
                tickfont={"size": 12, "color": LIGHT.text},
            ),
            showlegend=True,
            legend=legend(orientation="h"),
        ),
    )  # fmt: skip


def _dots(
    run: str,
    figures: RunResults,
    labels: Mapping[str, str],
    stroke: LineStyle,
    symbol: str,
) -> go.Scatter:
    found = [(s, v) for s in labels if (v := figures.value(s, "perplexity")) is not None]
    hollow = "" if stroke.dash == "solid" else "-open"
    return go.Scatter(
        x=[v for _, v in found],
        y=[labels[s] for s, _ in found],
        name=run,
        mode="markers",
        marker={
            "size": 11, "color": stroke.colour, "symbol": symbol + hollow,
            "line": {"width": 2, "color": stroke.colour},
        },
        hovertemplate=f"<b>{run}</b><br>%{{y}}<br>Perplexity %{{x:.4g}}<extra></extra>",
    )  # fmt: skip
