"""Slides of a story: each view with the charts of its page, for the screen and for export."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from backend.errors import SlimscopeError
from backend.queue.stories import StoryView, exported_story, stored_views
from backend.store.session import now_ms
from backend.store.tables import Story
from ui import pages
from ui.charts.chart import Chart, templates
from ui.frame import VERSION, Page, PageChart
from ui.runs.names import shared_description
from ui.runs.results import find_job
from ui.static import SCRIPT_URL, SCRIPTS, STYLES
from ui.templates import render
from ui.widgets.panel import cell

MAX_ROWS = 40  # rows of a table
MAX_PARTS = 4  # charts of a whole page
log = logging.getLogger("slimscope.story")


@dataclass(frozen=True)
class Part:
    """One chart of a slide.

    Attributes:
        figure: JSON of Plotly.
        rows: cells of the table, if there is no figure; the first row is the heading.
        sentence: the reason why there is neither.
    """

    title: str
    question: str = ""
    note: str = ""
    figure: dict[str, Any] | None = None
    rows: list[list[str]] = field(default_factory=list)
    sentence: str = ""


@dataclass(frozen=True)
class Slide:
    """A presented view. Without parts, the page itself is shown in a frame."""

    view: StoryView
    page: Page | None
    parts: list[Part]

    @property
    def title(self) -> str:
        """The headline of a single chart; otherwise the name of the page."""
        if len(self.parts) == 1:
            return self.parts[0].title
        return self.page.name if self.page else self.view.page


def slides(views: Iterable[StoryView], *, is_live: bool) -> list[Slide]:
    """The slides of some views. A whole page is drawn as its charts, unless it is shown live."""
    return [_slide(view, is_live) for view in views]


def page_of(view: StoryView) -> Page | None:
    """The page of a view; None if this version has no such page."""
    return next((page for page in pages.pages() if page.path == view.page), None)


def described_runs(view: StoryView) -> str:
    """Kind, model and settings that the runs of a view share; empty without runs."""
    jobs = [job for run in view.runs if (job := find_job(run))]
    return shared_description(jobs) if jobs else ""


def number_of(text: str) -> int:
    """A number from a URL; 0 for anything else."""
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _slide(view: StoryView, is_live: bool) -> Slide:
    page = page_of(view)
    if page is None:
        return Slide(view, None, [Part(view.page, sentence="This version has no such page.")])
    if view.chart:
        return Slide(view, page, [drawn(view, view.chart, page.charts)])
    if is_live:
        return Slide(view, page, [])
    parts: list[Part] = []
    for name in page.charts:
        part = drawn(view, name, page.charts)
        parts += [part] if part.figure or part.rows else []
        if len(parts) == MAX_PARTS:
            break
    why = "A file holds charts only, and this page has none here. Open it in the dashboard."
    return Slide(view, page, parts or [Part(page.name, sentence=why)])


def drawable(view: StoryView) -> dict[str, Part]:
    """The charts that the page of a view shows with its state, by name."""
    page = page_of(view)
    parts = {name: drawn(view, name, page.charts) for name in page.charts} if page else {}
    return {name: part for name, part in parts.items() if part.figure or part.rows}


def drawn(view: StoryView, name: str, charts: Mapping[str, PageChart]) -> Part:
    """A chart from the URL of a view, or a sentence. An error in one view does not hide the
    others."""
    if name not in charts:
        return Part(name, sentence="This version has no such chart.")
    source = charts[name]
    chart = _chart(view, source)
    title, question = chart.headline or source.title, chart.question or source.question
    if isinstance(chart.figure, go.Figure):
        figure = json.loads(chart.figure.to_json())
        return Part(title, question, chart.note, figure)
    if isinstance(chart.figure, str):
        return Part(title, question, sentence=chart.figure)
    if chart.frame is not None and not chart.frame.empty:
        values = chart.frame.head(MAX_ROWS).itertuples(index=False, name=None)
        rows = [[*map(str, chart.frame.columns)], *([*map(_text, row)] for row in values)]
        return Part(title, question, chart.note, rows=rows)
    return Part(title, question, sentence="There is nothing to show.")


def _chart(view: StoryView, source: PageChart) -> Chart:
    try:
        return source.draw(gr.Request(query_params=view.query))
    except SlimscopeError as error:
        return Chart(str(error))
    except Exception:
        log.exception("view %d: %s at %s", view.id, view.chart, view.address)
        return Chart("The chart could not be drawn; the log says why.")


def _text(value: Any) -> str:
    text = cell(value)
    return text if isinstance(text, str) else text[0]


def presented(title: str, views: list[StoryView], settings: Mapping[str, Any], leave: str) -> str:
    """The page that presents views. `settings`: see `slides.js`; `leave`: relative URL."""
    return _page(title, slides(views, is_live=True), settings, leave=leave)


def exported(story: Story) -> bytes:
    """A story as one HTML file that works offline and can be imported again."""
    shown = slides(stored_views(story.views), is_live=False)
    file = _json(exported_story(story))
    return _page(story.title, shown, {}, plotly=_script(get_plotlyjs()), file=file).encode()


def _page(
    title: str,
    shown: list[Slide],
    settings: Mapping[str, Any],
    *,
    plotly: Markup | str = "",
    file: Markup | str = "",
    leave: str = "",
) -> str:
    figures = {
        f"{slide.view.id}-{index}": part.figure
        for slide in shown
        for index, part in enumerate(slide.parts)
        if part.figure
    }
    return render(
        "pages/story/slides.html",
        title=title,
        slides=shown,
        described=described_runs,
        now=now_ms(),
        version=VERSION,
        plotly=plotly,
        file=file,
        leave=leave,
        css=Markup((STYLES / "story/slides.css").read_text("utf-8")),
        plotly_url=SCRIPT_URL,
        scripts=[
            _script((SCRIPTS / name).read_text("utf-8")) for name in ("shade.js", "story/slides.js")
        ],
        data=_json(json.dumps({"figures": figures, **settings})),
        templates=_json(templates()),
    )


def _script(source: str) -> Markup:
    return Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _json(text: str) -> Markup:
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))
