"""A Plotly chart that keeps its zoom, follows dark mode, and tells what was chosen in it.

`gr.Plot` throws its node away on every change and has no click event; this is `Plotly.react` in a
fixed `gr.HTML`. Colours of the light palette in a figure are exchanged for those of the dark one
in the browser (`assets/slimscope.js`), so a figure knows no mode.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from gradio.components import Component

from ui.format import esc
from ui.static import SCRIPT_URL
from ui.widgets.html import WIDGETS

FORMATS = {
    "png": "A picture", "svg": "A picture in vectors", "csv": "The figures that are drawn",
    "html": "The chart in a page of its own that needs no network",
}  # fmt: skip
SAVE = WIDGETS.save_chart(FORMATS)


def nothing(sentence: str) -> dict[str, str]:
    """The value of a chart that will stay empty: it takes little room."""
    return {"nothing": sentence}


class PlotlyView(gr.HTML):
    """Shows a figure, or a sentence where there is none.

    Value: a `go.Figure` or its JSON dict; a sentence that says why there is nothing yet; `nothing`
    where there will be nothing; None for the sentence `empty`. `figure.layout.meta` may hold
    `{"more": 48}`, pixels the figure asks for besides `height`, or `{"pick": "cell", "picked":
    [x, y]}`: then clicks and arrow keys choose a heatmap cell, which is outlined. `.select` follows
    a choice: `event._data` is `{"x", "y", "customdata"}`, and so is `slimscope.picked` for a `js`
    step, which is to be used where choices come fast: Gradio drops the data of events it puts off.

    Args:
        label: what the chart shows, for people who do not see it.
        height: pixels, kept before data arrives; given up where `nothing` will.
        empty: the sentence for a chart without data.
    """

    def __init__(
        self,
        value: go.Figure | dict[str, Any] | str | None = "",
        *,
        label: str,
        height: int = 360,
        empty: str = "Nothing to show yet.",
        elem_id: str | None = None,
        **options: Any,
    ) -> None:
        self.empty = empty
        super().__init__(
            value,
            label=label,
            html_template=(
                f'<div class="plot" style="min-height:{int(height)}px" data-label="{esc(label)}">'
                '<div class="plot-canvas"></div><p class="plot-empty" hidden></p></div>'
            ),
            js_on_load=(
                "slimscope.plot(element, props, watch, detail => trigger('select', detail))"
            ),
            head=f'<script src="{SCRIPT_URL}"></script>',
            apply_default_css=False,
            elem_id=elem_id,
            elem_classes="plot-view",
            **options,
        )

    def postprocess(self, value: go.Figure | dict[str, Any] | str | None) -> Any:
        """The figure as plain JSON, or a sentence; "" means that data is on its way."""
        if value is None:
            return self.empty
        return json.loads(value.to_json()) if isinstance(value, go.Figure) else value


@dataclass(frozen=True)
class ChartCard:
    """A chart with what stands around it.

    Attributes:
        note: HTML under the chart, see `note_html`.
        table: HTML with the chart's data as a `<table>`.
    """

    view: PlotlyView
    note: gr.HTML
    table: gr.HTML


def chart_card(
    title: str,
    question: str,
    view: PlotlyView,
    controls: Sequence[Sequence[Component]] = (),
    scale: int = 1,
) -> ChartCard:
    """Puts a view into a card: title, rows of controls, chart, the question it answers, and its
    data as a table that can be saved. View and controls were made with `render=False`."""
    with gr.Column(elem_classes="card", min_width=320, scale=scale):
        gr.HTML(f"<h2>{esc(title)}</h2>", js_on_load=None)
        for row in controls:
            with gr.Row(elem_classes="card-controls"):
                for control in row:
                    control.render()
        view.render()
        note = gr.HTML(note_html(question), js_on_load=None)
        gr.HTML(SAVE, js_on_load="slimscope.saving(element)", apply_default_css=False)
        with gr.Accordion("Data", open=False, elem_classes="card-data"):
            table = gr.HTML("", js_on_load="slimscope.table(element)")
    return ChartCard(view, note, table)


note_html = WIDGETS.chart_note
