"""Panels: a headline, a question, a frame of figures, and a plot of that frame, which is also shown
as the data table and saved as CSV. A page declares its panels, builds their cards, and updates
them.

The plot keeps its zoom, follows dark mode, and reports selections: `Plotly.react` in a `gr.HTML`,
as `gr.Plot` replaces its node on every change and has no click event."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
from gradio.components import Component
from markupsafe import Markup

from ui.charts.chart import Chart
from ui.format import NONE, count, number
from ui.frame import PageChart
from ui.static import SCRIPT_URL
from ui.widgets.html import WIDGETS

FORMATS = {
    "png": "Image",
    "svg": "Vector image",
    "csv": "Data of the chart",
    "html": "Interactive chart in a file that needs no network",
}
Found = TypeVar("Found")
Updates = dict[str, Any]  # name of an output -> what it is to show


def nothing(sentence: str) -> dict[str, str]:
    """Value of a chart that stays empty and small."""
    return {"nothing": sentence}


class PlotlyView(gr.HTML):
    """Figure (a `go.Figure` or its JSON), or a sentence that says why there is none: a text while
    data may come, `nothing` where none will. `height` pixels are reserved.

    `figure.layout.meta` may hold `{"more": 48}`, extra pixels of height, or `{"pick": "cell",
    "picked": [x, y]}`: then clicks and arrow keys select a heatmap cell, which is outlined.
    `.select` follows a selection: its data, and `slimscope.picked` for a `js` step (Gradio drops
    the data of events it defers), is `{"x", "y", "customdata"}`.
    """

    def __init__(
        self, label: str, height: int, elem_id: str | None = None, **options: Any
    ) -> None:  # Gradio makes it anew at each update
        super().__init__(
            "",
            label=label,
            html_template=WIDGETS.plot(label, height),
            js_on_load="slimscope.plot(element, props, watch, (point) => trigger('select', point))",
            head=WIDGETS.script(SCRIPT_URL),
            apply_default_css=False,
            elem_id=elem_id,
            elem_classes="plot-view",
            **options,
        )

    def postprocess(self, value: go.Figure | dict[str, Any] | str | None) -> Any:
        if value is None:
            return "Nothing to show yet."
        return json.loads(value.to_json()) if isinstance(value, go.Figure) else value


@dataclass(frozen=True)
class Panel:
    """One chart of a page."""

    name: str  # its outputs are NAME_chart, NAME_note, NAME_table and NAME_title
    title: str  # of its card without a headline; label for screen readers
    question: str = ""  # caption below the chart
    height: int = 340  # pixels, reserved before data arrives
    element: str = ""  # the id of its chart is PAGE-ELEMENT; else PAGE-NAME
    theory: str = ""  # known fact about such charts, with its source

    @property
    def parts(self) -> list[str]:
        """Names of its outputs."""
        return [f"{self.name}_{part}" for part in ("chart", "note", "table", "title")]

    def id_on(self, page: str) -> str:
        return f"{page}-{self.element or self.name}"

    def build(
        self, page: str, controls: Sequence[Sequence[Component]] = (), scale: int = 1
    ) -> dict[str, Component]:
        """Draws the empty card: title, rows of `controls` (made with `render=False`), chart,
        question, and data table; returns its outputs by name."""
        with gr.Column(elem_classes="card", min_width=320, scale=scale):
            title = gr.HTML(WIDGETS.card_title(self.title), js_on_load=None)
            for row in controls:
                with gr.Row(elem_classes="card-controls"):
                    for control in row:
                        control.render()
            view = PlotlyView(self.title, self.height, self.id_on(page))
            note = gr.HTML(WIDGETS.chart_note(self.question), js_on_load=None)
            gr.HTML(
                WIDGETS.save_chart(FORMATS),
                js_on_load="slimscope.saving(element)",
                apply_default_css=False,
                elem_classes="save-menu",
            )
            with gr.Accordion("Data", open=False, elem_classes="card-data"):
                table = gr.HTML("", js_on_load="slimscope.table(element)")
        return dict(zip(self.parts, (view, note, table, title), strict=True))

    def show(self, chart: Chart, run: str = "") -> Updates:
        """Updates of its outputs; `run` starts the CSV file's name."""
        if chart.name and isinstance(chart.figure, go.Figure):
            chart.figure.layout.meta = {**(chart.figure.layout.meta or {}), "name": chart.name}
        file = chart.name or f"{run}-{self.name}".strip("-")
        table = "" if chart.frame is None else frame_table(chart.frame, file)
        note = WIDGETS.chart_note(
            chart.question or self.question, chart.note, chart.theory or self.theory
        )
        title = WIDGETS.card_title(chart.headline or self.title)
        return dict(zip(self.parts, (chart.figure, note, table, title), strict=True))

    def clear(self) -> Updates:
        title = WIDGETS.card_title(self.title)
        return dict(zip(self.parts, ("", "", "", title), strict=True))


def page_charts(
    page: str,
    find: Callable[[gr.Request], Found | None],
    drawn: Mapping[Panel, Callable[[Found], Chart]],
    runs: str = "",
    missing: str = "The run has no such figures, or was deleted.",
) -> dict[str, PageChart]:
    """Entries of `Page.charts`: each draws what is found at an address, else says `missing`."""

    def drawn_by(draw: Callable[[Found], Chart]) -> Callable[[gr.Request], Chart]:
        def at(request: gr.Request) -> Chart:
            found = find(request)
            return Chart(missing) if found is None else draw(found)

        return at

    return {
        panel.id_on(page): PageChart(
            panel.title, panel.question, panel.height, drawn_by(draw), runs
        )
        for panel, draw in drawn.items()
    }


def frame_table(frame: pd.DataFrame, name: str) -> Markup:
    rows = [[*map(cell, row)] for row in frame.itertuples(index=False, name=None)]
    return WIDGETS.data_table([*frame.columns], rows, name)


def cell(value: Any) -> str | tuple[str, float]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, str):
        return value
    exact = value.item() if hasattr(value, "item") else value
    return (count(exact) if isinstance(exact, int) else number(exact)), exact


class Outputs(dict[str, Any]):
    """Components and layout blocks of a page by name, for handlers that return updates by name."""

    def named(self, handler: Callable[..., Updates]) -> Callable[..., list[Any]]:
        """Handler as Gradio calls it, with all outputs: unnamed ones stay as they are. Gradio sees
        the handler's signature, and so passes a request."""

        @wraps(handler)
        def call(*given: Any) -> list[Any]:
            updates = handler(*given)
            unknown = updates.keys() - self.keys()
            assert not unknown, f"no such outputs: {sorted(unknown)}"
            return [updates.get(name, gr.skip()) for name in self]

        return call

    @property
    def components(self) -> list[Component]:
        return [*self.values()]


def updates(*parts: Mapping[str, Any]) -> Updates:
    return {name: value for part in parts for name, value in part.items()}
