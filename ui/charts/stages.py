"""Perplexity of every stage of a run, as dots on a log axis: differences are ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from backend.store.queries import StoredResult
from jobs.metrics import PERPLEXITY
from ui.charts.chart import Chart
from ui.charts.dots import dots, in_lines, log_span, rows_axis, rows_height, symbol
from ui.charts.headlines import of_stages
from ui.charts.template import layout, log_axis, reference_line
from ui.format import count, number
from ui.theme import LIGHT, stage_style, stage_styles

HEIGHT, AROUND, LEAST = 280, 64, 160  # pixels: reserved for the chart; its axis; with few rows
VALUE_WIDTH = 56  # pixels at the right, for the value of the rightmost dot


def perplexities(results: Sequence[StoredResult], names: Mapping[str, str]) -> list[StoredResult]:
    order = {stage: i for i, stage in enumerate(names)}
    rows = [r for r in results if r.metric == PERPLEXITY]
    return sorted(rows, key=lambda r: order.get(r.stage, len(order)))


def perplexity_chart(results: Sequence[StoredResult], names: Mapping[str, str]) -> Chart:
    """One dot a stage with its value printed; a dashed line for the dense model. `names` maps
    stages to labels in the order of drawing."""
    rows = perplexities(results, names)
    full = [names.get(r.stage, r.stage) for r in rows]
    labels = [*map(in_lines, full)]
    span = log_span([r.value for r in rows], right=0.2)
    looks = layout(
        view=PERPLEXITY, margin={"r": VALUE_WIDTH}, yaxis=rows_axis(labels),
        xaxis=log_axis("Perplexity", span, tickangle=0, showgrid=False),
        more=rows_height(len(rows), AROUND, LEAST) - HEIGHT,
        shapes=[reference_line(x=r.value) for r in rows if r.stage == "dense"],
    )  # fmt: skip
    strokes, errors = [stage_style(r.stage) for r in rows], [r.stderr or 0.0 for r in rows]
    marks = dots(
        [r.value for r in rows],
        labels,
        [stroke.colour for stroke in strokes],
        [symbol(stroke) for stroke in strokes],
        [_hover(r, label) for r, label in zip(rows, labels, strict=True)],
        error_x={"array": errors, "color": LIGHT.muted, "thickness": 1, "width": 0},
    )
    printed = go.Scatter(  # behind the lines of the errors
        x=[r.value + error for r, error in zip(rows, errors, strict=True)], y=labels, mode="text",
        text=[f"  {number(r.value)}" for r in rows], textposition="middle right",
        textfont={"size": 14}, hoverinfo="skip", showlegend=False, cliponaxis=False,
    )  # fmt: skip
    frame = pd.DataFrame(
        [(label, r.value, r.stderr, r.n) for label, r in zip(full, rows, strict=True)],
        columns=["Stage", "Perplexity", "Standard error", "Tokens"], dtype=object,
    )  # fmt: skip
    styles = stage_styles()
    main = [
        (label, r.value)
        for label, r in zip(full, rows, strict=True)
        if r.stage not in styles or styles[r.stage].main  # no controls
    ]
    figure = go.Figure([marks, printed], looks)
    return Chart(figure, frame, perplexity_note(results), headline=of_stages(main))


def perplexity_note(results: Sequence[StoredResult]) -> str:
    """Evaluation text and number of tokens, in words."""
    first = next((r for r in results if r.metric == PERPLEXITY), None)
    if first is None:
        return ""
    words = [f"n = {count(first.n)} tokens"] if first.n else []
    corpus, context = (first.details.get(key) for key in ("corpus", "context"))
    words += [f"text {corpus}"] if corpus else []
    words += [f"context {context} tokens"] if context else []
    return ", ".join(words) + "."


def _hover(result: StoredResult, label: str) -> str:
    spread = "" if result.stderr is None else f" ± {number(result.stderr, 2)}"
    value = f"<b>{label}</b><br>Perplexity {number(result.value)}{spread}"
    return f"{value}<br>n = {count(result.n)} tokens"
