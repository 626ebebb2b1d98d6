"""Perplexity of each stage of a run, as dots on a log axis, where distances are ratios."""

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from backend.store.queries import StoredResult
from jobs.metrics import PERPLEXITY
from ui.charts.chart import Chart, layout, log_axis, reference_line
from ui.charts.headlines import stages_headline
from ui.charts.lines import dots, in_lines, log_span, rows_axis, rows_height, symbol
from ui.format import count, number
from ui.theme import LIGHT, declared, stage_style, stage_styles

CHART_HEIGHT, AXIS_HEIGHT, MIN_HEIGHT = 280, 64, 160  # pixels


def perplexities(results: Sequence[StoredResult], names: Mapping[str, str]) -> list[StoredResult]:
    """The perplexities among the results, in the order of the stages `names`."""
    order = {stage: i for i, stage in enumerate(names)}
    rows = [r for r in results if r.metric == PERPLEXITY]
    return sorted(rows, key=lambda r: order.get(r.stage, len(order)))


def perplexity_chart(
    results: Sequence[StoredResult], names: Mapping[str, str], rival: str = "", kept: str = ""
) -> Chart:
    """A dot and the value of each stage; a dashed line marks the dense model's perplexity.

    Args:
        names: labels by stage, in the order of the rows.
        rival: stage that the headline compares `kept` with; the worst one if empty.
        kept: stage that the headline is about; the last one of the method if empty.
    """
    rows = perplexities(results, names)
    labels = [in_lines(names.get(r.stage, r.stage)) for r in rows]
    ends = [r.value + side * (r.stderr or 0.0) for r in rows for side in (-1, 0, 1)]
    span = log_span([end for end in ends if end > 0], right=0.2)
    chart_layout = layout(
        view=PERPLEXITY.family,
        margin={"r": 56},
        yaxis=rows_axis(labels),
        xaxis=log_axis("Perplexity", span, tickangle=0, showgrid=False),
        more=rows_height(len(rows), AXIS_HEIGHT, MIN_HEIGHT) - CHART_HEIGHT,
        shapes=[reference_line(x=r.value) for r in rows if r.stage == "dense"],
    )
    strokes, errors = [stage_style(r.stage) for r in rows], [r.stderr or 0.0 for r in rows]
    markers = dots(
        [r.value for r in rows],
        labels,
        [s.color for s in strokes],
        [*map(symbol, strokes)],
        [*map(_hover, rows, labels)],
        error_x={"array": errors, "color": LIGHT.muted, "thickness": 1, "width": 0},
    )
    values = go.Scatter(  # each to the right of its error bar
        x=[r.value + (r.stderr or 0.0) for r in rows],
        y=labels,
        mode="text",
        text=[f"  {number(r.value)}" for r in rows],
        textposition="middle right",
        textfont={"size": 14},
        hoverinfo="skip",
        showlegend=False,
        cliponaxis=False,
    )
    records = [(names.get(r.stage, r.stage), r.value, r.stderr, r.n) for r in rows]
    columns = ["Stage", "Perplexity", "Standard error", "Tokens"]
    frame = pd.DataFrame(records, columns=columns, dtype=object)
    styles = stage_styles()
    main_rows = [r for r in rows if r.stage not in styles or styles[r.stage].main]  # no controls
    named = {
        r.stage: (declared(r.stage).short or names.get(r.stage, r.stage), r.value) for r in rows
    }
    last = [kept] * (kept in named)
    shown = [r.stage for r in main_rows if r.stage not in last] + last
    headline = stages_headline([named[stage] for stage in shown], named.get(rival))
    figure = go.Figure([markers, values], chart_layout)
    return Chart(figure, frame, perplexity_note(results), headline=headline)


def perplexity_note(results: Sequence[StoredResult]) -> str:
    """The conditions of a run's perplexities: number of tokens, text, context length, rounding."""
    first = next((r for r in results if r.metric == PERPLEXITY), None)
    if first is None:
        return ""
    parts = [f"n = {count(first.n)} tokens"] if first.n else []
    corpus, context = (first.details.get(key) for key in ("corpus", "context"))
    parts += [f"text {corpus}"] if corpus else []
    parts += [f"context {context} tokens"] if context else []
    note = f"{', '.join(parts)}."
    if dtype := first.details.get("rounded"):
        note += f" Unquantized tensors were rounded to {dtype} in all stages, dense included."
    return note


def _hover(result: StoredResult, label: str) -> str:
    spread = "" if result.stderr is None else f" ± {number(result.stderr, 2)}"
    value = f"<b>{label}</b><br>Perplexity {number(result.value)}{spread}"
    return f"{value}<br>n = {count(result.n)} tokens"
