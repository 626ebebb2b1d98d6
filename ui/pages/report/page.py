"""Reports: charts of up to six runs with texts and notes, kept, shared by link, and exported."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

import gradio as gr
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.queue import reports as writing
from backend.queue.actor import Actor
from backend.queue.permissions import may_not_change
from backend.queue.reports import ReportBlock, report, reports, runs_of, stored_blocks
from backend.store.session import now_ms
from backend.store.tables import Report
from ui import pages
from ui.charts.chart import Chart, templates
from ui.format import href
from ui.frame import (
    PRIVATE_EVENT,
    SILENT_EVENT,
    VERSION,
    Page,
    PageChart,
    current_user,
    on_load,
    query,
)
from ui.gradio_patches import event_data
from ui.runs.actions import MAX_COMPARED
from ui.runs.rows import all_rows
from ui.runs.weights import run_choices
from ui.static import SCRIPT_URL, SCRIPTS
from ui.templates import fragments, render
from ui.widgets.dropdown import dropdown
from ui.widgets.html import WIDGETS, Download, file_payload, notice, show_error, show_html
from ui.widgets.panel import Outputs, Updates, cell, frame_table

MAX_ROWS = 200  # of a table
MIN_HEIGHT = 320  # px
HTML = fragments("pages/report/page.html")
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


def exported(report: Report, blocks: Sequence[DrawnBlock]) -> str:
    figures = {each.block.id: each.figure for each in blocks if each.figure}
    tables = {}
    for each in blocks:
        if each.chart and not each.figure and not each.sentence:
            frame = each.chart.frame
            assert frame is not None, "a chart with neither figure nor frame has a sentence"
            rows = frame.head(MAX_ROWS).itertuples(index=False, name=None)
            tables[each.block.id] = [*frame.columns], [[_text(v) for v in row] for row in rows]
    heights = {each.block.id: height_of(each) for each in blocks}
    return render(
        "pages/report/export.html",
        report=report,
        runs=runs_of(each.block for each in blocks),
        blocks=blocks,
        tables=tables,
        heights=heights,
        now=now_ms(),
        version=VERSION,
        plotly=_script(get_plotlyjs()),
        shade=_script((SCRIPTS / "shade.js").read_text(encoding="utf-8")),
        templates=_json(templates()),
        figures=_json(json.dumps(figures)),
    )


def height_of(block: DrawnBlock) -> int:
    meta = ((block.figure or {}).get("layout") or {}).get("meta") or {}
    own = block.source.chart.height if block.source else 0
    return max(own, MIN_HEIGHT) + int(meta.get("more", 0))


def _text(value: Any) -> str:
    written = cell(value)
    return written if isinstance(written, str) else written[0]


def _script(source: str) -> Markup:
    return Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _json(text: str) -> Markup:
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


class ReportView(gr.HTML):
    """Shows `{"top": HTML, "blocks": [{"id", "html", "figure"}]}`, redrawing changed blocks only.
    Raises `act` as an `HtmlPanel` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            None,
            html_template=HTML.frame(),
            js_on_load=(
                "slimscope.report(element, props, watch); "
                "slimscope.htmlPanel(element, () => {}, (data) => trigger('act', data))"
            ),
            head=WIDGETS.script(SCRIPT_URL),
            apply_default_css=False,
            **options,
        )


def build() -> None:
    message = notice("report-said")
    page = Outputs(view=ReportView(elem_id="report-view", min_height=240))
    runs = dropdown(
        "Runs", "report-runs", multiselect=True, max_choices=MAX_COMPARED, min_width=320, scale=3
    )
    chart = dropdown("Chart", "report-chart", min_width=240, scale=3)
    with gr.Row(visible=False, elem_id="report-add", elem_classes="card") as page["adding"]:
        runs.render()
        chart.render()
        add = gr.Button("Add chart", scale=0, min_width=120, elem_id="report-add-button")
    page |= {"runs": runs, "chart": chart}
    done = Outputs(message=message, file=Download())
    done["leave"] = gr.HTML(  # opens the address it is given
        None, html_template="", js_on_load="slimscope.leave(props, watch)", elem_classes="saver"
    )
    show = page.named(draw), None, page.components
    on_load(*show)
    acted = page["view"].act(done.named(act), None, done.components, **PRIVATE_EVENT)
    acted.then(*show, **SILENT_EVENT)
    added = add.click(done.named(add_chart), [runs, chart], done.components, **PRIVATE_EVENT)
    added.then(*show, **SILENT_EVENT)


def draw(request: gr.Request) -> Updates:
    number, user = _number(query(request, "n")), current_user(request)
    off = may_not_change(user)
    hidden = {"adding": gr.update(visible=False)}
    if number is None:
        return {"view": {"top": listing(request, off), "blocks": []}, **hidden}
    try:
        shown = report(number)
    except NotFoundError:
        return {"view": {"top": HTML.unknown(number), "blocks": []}, **hidden}
    if off:
        return {"view": _view(shown, off), **hidden}
    offered = [
        (f"{source.page.name}: {source.chart.title}", name)
        for name, source in known_charts().items()
        if source.chart.runs
    ]
    return {
        "view": _view(shown, off),
        "adding": gr.update(visible=True),
        "runs": gr.update(choices=run_choices([row.job for row in all_rows()], "")),
        "chart": gr.update(choices=offered),
    }


def listing(request: gr.Request, off: str) -> str:
    blocks = [(each, stored_blocks(each.blocks)) for each in reports()]
    rows = [(each, runs_of(own), opening(own)) for each, own in blocks]
    source = known_charts().get(query(request, ADD))
    adding = f"{source.page.name}: {source.chart.title}" if source else ""
    html: str = HTML.listing(rows, now_ms(), off, adding)
    return html


def known_charts() -> Mapping[str, ChartSource]:
    """Every chart a report may show; complete only when all pages are loaded."""
    return sources(pages.pages())


def drawn_blocks(shown: Report) -> list[DrawnBlock]:
    known = known_charts()
    return [drawn(block, known) for block in stored_blocks(shown.blocks)]


def _view(shown: Report, off: str) -> dict[str, Any]:
    blocks = drawn_blocks(shown)
    top = HTML.head(shown, runs_of(each.block for each in blocks), now_ms(), off)
    if not blocks:
        top += HTML.nothing_yet(off)
    last = len(blocks) - 1
    return {
        "top": top,
        "blocks": [
            {
                "id": each.block.id,
                "figure": each.figure,
                "html": HTML.block(
                    shown.id,
                    each,
                    height_of(each) if each.figure else 0,
                    _table(shown, each),
                    place == 0,
                    place == last,
                    off,
                ),
            }
            for place, each in enumerate(blocks)
        ],
    }


def _table(shown: Report, block: DrawnBlock) -> str:
    if block.figure or block.sentence or block.chart is None or block.chart.frame is None:
        return ""
    return frame_table(block.chart.frame, f"report-{shown.id}-{block.block.id}")


CHANGES: dict[str, Callable[[int, int, str, Actor], None]] = {  # report, block, text, who
    "text": lambda number, _, text, user: writing.add_text(number, text, user),
    "rename": lambda number, _, text, user: writing.rename_report(number, text, user),
    "write": writing.write_text,
    "up": lambda number, block, _, user: writing.move_block(number, block, -1, user),
    "down": lambda number, block, _, user: writing.move_block(number, block, 1, user),
    "remove": lambda number, block, _, user: writing.remove_block(number, block, user),
}


def act(event: gr.EventData, request: gr.Request) -> Updates:
    sent = {key: str(value or "") for key, value in event_data(event).items()}
    do, text, user = sent.get("do", ""), sent.get("text", ""), current_user(request)
    number, block = _number(sent.get("run", "")) or 0, _number(sent.get("file", "")) or 0
    try:
        match do:
            case "create":
                chart = _asked_chart(request)  # refused before there is a report
                return _opened(_with_chart(writing.create_report(text, user), chart, user))
            case "add":
                return _opened(_with_chart(number, _asked_chart(request), user))
            case "delete":
                writing.delete_report(number, user)
                return {"message": show_html(), "leave": str(href("report"))}
            case "export":
                shown = report(number)
                name = re.sub(r"[^\w.-]+", "-", shown.title).strip("-") or "report"
                data = exported(shown, drawn_blocks(shown)).encode()
                return {"message": show_html(), "file": file_payload(f"{name}.html", data)}
        if do in CHANGES:
            CHANGES[do](number, block, text, user)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_html()}


def add_chart(runs: list[str] | None, chart: str | None, request: gr.Request) -> Updates:
    number, user = _number(query(request, "n")) or 0, current_user(request)
    try:
        source = known_charts().get(chart or "")
        if source is None or not runs:
            raise ConfigError("No chart was added.", "Choose one run or more, and a chart.")
        # all runs where the page compares several, else the first, with the second beside it
        address = {source.chart.runs: ",".join(runs) if source.chart.runs == "ids" else runs[0]}
        if source.chart.runs == "run" and len(runs) > 1:
            address["vs"] = runs[1]
        writing.add_chart(number, chart or "", urlencode(address), user)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_html()}


def _asked_chart(request: gr.Request) -> tuple[str, str] | None:
    asked = dict(request.query_params or {})
    chart = str(asked.get(ADD, ""))
    if chart and chart not in known_charts():
        raise ConfigError("The chart was not added.", f"There is no chart {chart[:60]!r}.")
    return (chart, query_of(asked)) if chart else None


def _with_chart(number: int, chart: tuple[str, str] | None, user: Actor) -> int:
    if chart:
        writing.add_chart(number, *chart, user)
    return number


def _opened(number: int) -> Updates:
    return {"message": show_html(), "leave": str(href("report", n=number))}


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 16 else None


PAGE = Page("Reports", "report", build, order=35, section="Runs", key="t", heading=False)
