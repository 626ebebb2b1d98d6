"""Panels: a headline, a question, a frame of figures, and a plot of that frame, which is also shown
as the data table and saved as CSV. A page declares its panels, builds their cards, and updates
them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
from gradio.components import Component
from markupsafe import Markup

from ui.charts.chart import Chart
from ui.format import NONE, count, number
from ui.frame import PageChart
from ui.widgets.chart import PlotlyView
from ui.widgets.html import WIDGETS

FORMATS = {
    "png": "Image", "svg": "Vector image", "csv": "Data of the chart",
    "html": "Interactive chart in a file that needs no network",
}  # fmt: skip
SAVE = WIDGETS.save_chart(FORMATS)
Updates = dict[str, Any]  # name of an output -> what it is to show


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
            view = PlotlyView(label=self.title, height=self.height, elem_id=self.id_on(page))
            note = gr.HTML(WIDGETS.chart_note(self.question), js_on_load=None)
            gr.HTML(
                SAVE, js_on_load="slimscope.saving(element)", apply_default_css=False,
                elem_classes="save-menu",
            )  # fmt: skip
            with gr.Accordion("Data", open=False, elem_classes="card-data"):
                table = gr.HTML("", js_on_load="slimscope.table(element)")
        return dict(zip(self.parts, (view, note, table, title), strict=True))

    def show(self, chart: Chart, run: str = "", question: str = "") -> Updates:
        """Updates of its outputs; `run` starts the CSV file's name, `question` replaces its own."""
        if chart.name and isinstance(chart.figure, go.Figure):
            chart.figure.layout.meta = {**(chart.figure.layout.meta or {}), "name": chart.name}
        file = chart.name or f"{run}-{self.name}".strip("-")
        table = "" if chart.frame is None else frame_table(chart.frame, file)
        note = WIDGETS.chart_note(
            question or chart.question or self.question, chart.note, chart.theory or self.theory
        )
        title = WIDGETS.card_title(chart.headline or self.title)
        return dict(zip(self.parts, (chart.figure, note, table, title), strict=True))

    def clear(self) -> Updates:
        title = WIDGETS.card_title(self.title)
        return dict(zip(self.parts, ("", "", "", title), strict=True))


def page_charts(
    page: str, drawn: Mapping[Panel, Callable[[gr.Request], Chart]], runs: str = ""
) -> dict[str, PageChart]:
    """Entries of `Page.charts`, each drawn from an address."""
    return {
        panel.id_on(page): PageChart(panel.title, panel.question, panel.height, draw, runs)
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
