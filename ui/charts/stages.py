"""Perplexity of every stage of a run, as dots on a log axis: differences are ratios."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from backend.store.tables import Result
from ui.charts.template import axis, layout, log_axis
from ui.format import count, number
from ui.theme import LIGHT, LineStyle, stage_style

METRIC = "perplexity"
WIDE = 20


def perplexities(results: Sequence[Result], names: Mapping[str, str]) -> list[Result]:
    """The perplexities among the results, in the order of the stages."""
    order = {stage: i for i, stage in enumerate(names)}
    found = [r for r in results if r.metric == METRIC]
    return sorted(found, key=lambda r: order.get(r.stage, len(order)))


def stage_perplexities(results: Sequence[Result], names: Mapping[str, str]) -> go.Figure:
    """One dot a stage with its value printed; the dense model's is a dashed line.

    Args:
        results: of one run; other metrics among them are left out.
        names: stage -> label, in the order they are drawn.
    """
    rows = perplexities(results, names)
    dense = next((r.value for r in rows if r.stage == "dense"), None)
    line = {"color": LIGHT.muted, "width": 1, "dash": "dash"}
    shapes = [
        {"type": "line", "x0": dense, "x1": dense, "y0": 0, "y1": 1, "yref": "paper", "line": line}
    ]
    labels = [in_lines(names.get(r.stage, r.stage)) for r in rows]
    values = [math.log10(r.value) for r in rows]
    room = max(max(values, default=0) - min(values, default=0), 0.1)
    span = [min(values, default=0) - 0.1 * room, max(values, default=1) + 0.2 * room]
    return go.Figure(
        [_dots(rows, labels), _printed(rows, labels)],
        layout(
            view=METRIC,
            margin={"l": 8, "r": 56, "t": 8, "b": 8},
            shapes=shapes if dense else [],
            xaxis=log_axis("Perplexity", span, tickangle=0, showgrid=False),
            yaxis=axis(
                autorange="reversed", showgrid=True, tickfont={"size": 12, "color": LIGHT.text}
            ),
        ),
    )


def symbol(stroke: LineStyle) -> str:
    """A full dot, or a ring where a stage shares its colour with another."""
    return "circle" if stroke.dash == "solid" else "circle-open"


def _dots(rows: Sequence[Result], labels: list[str]) -> go.Scatter:
    """A dot for each stage, its error as a line."""
    strokes = [stage_style(r.stage) for r in rows]
    return go.Scatter(
        x=[r.value for r in rows],
        y=labels,
        error_x={
            "type": "data",
            "array": [r.stderr or 0.0 for r in rows],
            "color": LIGHT.muted,
            "thickness": 1,
            "width": 0,
        },
        mode="markers",
        marker={
            "size": 12,
            "color": [stroke.colour for stroke in strokes],
            "symbol": [symbol(stroke) for stroke in strokes],
            "line": {"width": 2},
        },
        hovertext=[_hover(r, label) for r, label in zip(rows, labels, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )


def _printed(rows: Sequence[Result], labels: list[str]) -> go.Scatter:
    """The values in figures, each behind the line of its error."""
    return go.Scatter(
        x=[r.value + (r.stderr or 0.0) for r in rows],
        y=labels,
        mode="text",
        text=[f"  {number(r.value)}" for r in rows],
        textposition="middle right",
        textfont={"size": 14, "color": LIGHT.text},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )


def perplexity_note(results: Sequence[Result]) -> str:
    """In words: on which text, of how many tokens."""
    first = next((r for r in results if r.metric == METRIC), None)
    if first is None:
        return ""
    words = [f"n = {count(first.n)} tokens"] if first.n else []
    corpus, context = (first.details.get(key) for key in ("corpus", "context"))
    words += [f"text {corpus}"] if corpus else []
    words += [f"context {context} tokens"] if context else []
    return ", ".join(words) + "."


def in_lines(label: str) -> str:
    """A label in lines of about `WIDE` letters, so that a phone leaves room for the plot."""
    return "<br>".join(textwrap.wrap(label, WIDE))


def _hover(result: Result, label: str) -> str:
    spread = "" if result.stderr is None else f" ± {number(result.stderr, 2)}"
    value = f"<b>{label}</b><br>Perplexity {number(result.value)}{spread}"
    return f"{value}<br>n = {count(result.n)} tokens"
