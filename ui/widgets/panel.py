"""Panels: cards with a headline, a plot, a question as its caption, and the plotted data.

The data is shown as a table and saved as CSV. A page declares its panels, builds their cards, and
updates them. The plot keeps its zoom, follows dark mode, and reports selections. It is drawn by
`Plotly.react` in a `gr.HTML`, since `gr.Plot` replaces its node on every change and has no click
event."""

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
Data = TypeVar("Data")
Updates = dict[str, Any]  # new values of outputs by name


class PlotlyView(gr.HTML):
    """A Plotly figure (`go.Figure` or its JSON), or a sentence that says why there is none.

    `height` pixels are reserved. `figure.layout.meta` may hold `{"more": 48}`, extra pixels of
    height.
    """

    def __init__(
        self, label: str, height: int, elem_id: str | None = None, **options: Any
    ) -> None:  # Gradio constructs it again at each update
        super().__init__(
            "",
            label=label,
            html_template=WIDGETS.plot(label, height),
            js_on_load="slimscope.plot(element, props, watch)",
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
    """One chart of a page.

    Attributes:
        name: start of the names of its outputs NAME_chart, NAME_note, NAME_table, NAME_title.
        title: title of the card of a chart without a headline; label for screen readers.
        question: caption below the chart.
        height: pixels that are reserved before data arrives.
        element: end of the chart's id PAGE-ELEMENT; the name if empty.
    """

    name: str
    title: str
    question: str = ""
    height: int = 340
    element: str = ""

    @property
    def parts(self) -> list[str]:
        """Names of the panel's outputs."""
        return [f"{self.name}_{part}" for part in ("chart", "note", "table", "title")]

    def id_on(self, page: str) -> str:
        """The element id of the chart on a page."""
        return f"{page}-{self.element or self.name}"

    def build(
        self, page: str, controls: Sequence[Sequence[Component]] = (), scale: int = 1
    ) -> dict[str, Component]:
        """Draw the empty card: title, controls, chart, question and data table.

        Args:
            controls: rows of components that were constructed with `render=False`.
            scale: relative width of the card.

        Returns:
            The outputs by name.
        """
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
        """Updates that show a chart; `run` begins the name of its CSV file."""
        if chart.name and isinstance(chart.figure, go.Figure):
            chart.figure.layout.meta = {**(chart.figure.layout.meta or {}), "name": chart.name}
        file = chart.name or f"{run}-{self.name}".strip("-")
        table = "" if chart.frame is None else frame_table(chart.frame, file)
        note = WIDGETS.chart_note(chart.question or self.question, chart.note, chart.theory)
        title = WIDGETS.card_title(chart.headline or self.title)
        return dict(zip(self.parts, (chart.figure, note, table, title), strict=True))

    def clear(self) -> Updates:
        """Updates that empty the panel."""
        title = WIDGETS.card_title(self.title)
        return dict(zip(self.parts, ("", "", "", title), strict=True))


def page_charts(
    page: str,
    find: Callable[[gr.Request], Data | None],
    drawn: Mapping[Panel, Callable[[Data], Chart]],
    runs: str = "",
    missing: str = "The run has no figures for this chart, or was deleted.",
) -> dict[str, PageChart]:
    """Entries of `Page.charts`, which draw a page's charts from an address.

    Args:
        page: name of the page.
        find: loads the data of an address; None without data.
        drawn: functions that draw the charts from the data, by panel.
        runs: name of the address field that holds runs.
        missing: sentence without data.
    """

    def draw_at(draw: Callable[[Data], Chart]) -> Callable[[gr.Request], Chart]:
        def draw_request(request: gr.Request) -> Chart:
            data = find(request)
            return Chart(missing) if data is None else draw(data)

        return draw_request

    return {
        panel.id_on(page): PageChart(panel.title, panel.question, draw_at(draw), runs)
        for panel, draw in drawn.items()
    }


def frame_table(frame: pd.DataFrame, name: str) -> Markup:
    """The table of a chart's data; `name` is the name of its CSV file."""
    rows = [[*map(cell, row)] for row in frame.itertuples(index=False, name=None)]
    return WIDGETS.data_table([*frame.columns], rows, name)


def cell(value: Any) -> str | tuple[str, float]:
    """A table cell: its text, with the exact value of a number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, str):
        return value
    exact = value.item() if hasattr(value, "item") else value
    return (count(exact) if isinstance(exact, int) else number(exact)), exact


class Outputs(dict[str, Any]):
    """Components and layout blocks of a page by name, for handlers that return updates by name."""

    def named(self, handler: Callable[..., Updates]) -> Callable[..., list[Any]]:
        """Convert a handler that returns updates by name into one for Gradio, which returns a list.

        Outputs without an update do not change. The signature is preserved, so that Gradio passes
        the request."""

        @wraps(handler)
        def call(*arguments: Any) -> list[Any]:
            updates = handler(*arguments)
            unknown = updates.keys() - self.keys()
            assert not unknown, f"no such outputs: {sorted(unknown)}"
            return [updates.get(name, gr.skip()) for name in self]

        return call

    @property
    def components(self) -> list[Component]:
        """The components in the order of their updates."""
        return [*self.values()]


def updates(*parts: Mapping[str, Any]) -> Updates:
    """The union of several updates; later ones replace earlier ones."""
    return {name: value for part in parts for name, value in part.items()}
