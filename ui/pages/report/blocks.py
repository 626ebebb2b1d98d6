"""What a report shows: each block drawn anew from what is stored now."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
import plotly.graph_objects as go

from backend.errors import SlimscopeError
from backend.queue.reports import ReportBlock
from ui.charts.chart import Chart
from ui.format import href
from ui.frame import Page, PageChart

ADD = "add"  # the name in the address that holds the chart to be added; the others are its own
HEADING = "# "
log = logging.getLogger("slimscope.report")


@dataclass(frozen=True)
class ChartSource:
    page: Page
    chart: PageChart


@dataclass(frozen=True)
class DrawnBlock:
    """Block as shown: `words` are (heading?, paragraph) of its text; `sentence` says why there is
    neither a figure nor a table; `figure` is JSON of Plotly."""

    block: ReportBlock
    words: list[tuple[bool, str]]
    source: ChartSource | None = None
    chart: Chart | None = None
    figure: dict[str, Any] | None = None
    sentence: str = ""

    @property
    def title(self) -> str:
        known = self.source.chart.title if self.source else self.block.chart
        return (self.chart.headline if self.chart else "") or known

    @property
    def question(self) -> str:
        known = self.source.chart.question if self.source else ""
        return (self.chart.question if self.chart else "") or known

    @property
    def about(self) -> str:
        """Page, chart, runs and tensor."""
        if self.source is None:
            return ""
        named = f"{self.source.page.name}: {self.source.chart.title}"
        tensor = dict(parse_qsl(self.block.query)).get("tensor", "")
        return " · ".join(filter(None, (named, ", ".join(self.block.runs), tensor)))

    @property
    def address(self) -> str:
        return f"{href(self.source.page.path)}?{self.block.query}" if self.source else ""


def sources(pages: Iterable[Page]) -> dict[str, ChartSource]:
    return {name: ChartSource(page, chart) for page in pages for name, chart in page.charts.items()}


def query_of(asked: Mapping[str, str]) -> str:
    """Address of the chart to be added, within that of a report."""
    return urlencode({name: value for name, value in asked.items() if name != ADD})


def drawn(block: ReportBlock, known: Mapping[str, ChartSource]) -> DrawnBlock:
    """Block with its figure, or with a sentence: no failure hides the other blocks."""
    words = paragraphs(block.text)
    if not block.chart:
        return DrawnBlock(block, words)
    source = known.get(block.chart)
    chart = _chart(block, source)
    figure = chart.figure
    if isinstance(figure, go.Figure):
        return DrawnBlock(block, words, source, chart, json.loads(figure.to_json()))
    said = figure if isinstance(figure, str) else (figure or {}).get("nothing", "")
    if not said and (chart.frame is None or chart.frame.empty):
        said = "There is nothing to show."
    return DrawnBlock(block, words, source, chart, sentence=said)


def _chart(block: ReportBlock, source: ChartSource | None) -> Chart:
    if source is None:
        return Chart("This version has no chart of that name.")
    try:
        return source.chart.draw(gr.Request(query_params=dict(parse_qsl(block.query))))
    except SlimscopeError as error:
        return Chart(str(error))
    except Exception:
        log.exception("block %d: %s?%s", block.id, block.chart, block.query)
        return Chart("The chart could not be drawn; the log says why.")


def opening(blocks: Iterable[ReportBlock]) -> str:
    """The first paragraph of a report that is no heading; empty without one."""
    said = (part for one in blocks for heading, part in paragraphs(one.text) if not heading)
    return next(said, "")


def paragraphs(text: str) -> list[tuple[bool, str]]:
    """Paragraphs, separated by empty lines, and whether each is a heading (begins with #)."""
    parts = [part.strip("\n") for part in text.split("\n\n")]
    return [
        (part.startswith(HEADING), part.removeprefix(HEADING)) for part in parts if part.strip()
    ]
