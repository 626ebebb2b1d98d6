"""Plotly chart that keeps its zoom, follows dark mode, and reports selections: `Plotly.react` in a
`gr.HTML`, as `gr.Plot` replaces its node on every change and has no click event."""

import json
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from ui.static import SCRIPT_URL
from ui.widgets.html import WIDGETS


def nothing(sentence: str) -> dict[str, str]:
    """Value of a chart that stays empty and small."""
    return {"nothing": sentence}


class PlotlyView(gr.HTML):
    """Figure (a `go.Figure` or its JSON), or a sentence that says why there is none: a text while
    data may come, `nothing` where none will, None for `empty`. `height` pixels are reserved.

    `figure.layout.meta` may hold `{"more": 48}`, extra pixels of height, or `{"pick": "cell",
    "picked": [x, y]}`: then clicks and arrow keys select a heatmap cell, which is outlined.
    `.select` follows a selection: its data, and `slimscope.picked` for a `js` step (Gradio drops
    the data of events it defers), is `{"x", "y", "customdata"}`.
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
            html_template=WIDGETS.plot(label, height),
            js_on_load=(
                "slimscope.plot(element, props, watch, detail => trigger('select', detail))"
            ),
            head=WIDGETS.script(SCRIPT_URL),
            apply_default_css=False,
            elem_id=elem_id,
            elem_classes="plot-view",
            **options,
        )

    def postprocess(self, value: go.Figure | dict[str, Any] | str | None) -> Any:
        if value is None:
            return self.empty
        return json.loads(value.to_json()) if isinstance(value, go.Figure) else value
