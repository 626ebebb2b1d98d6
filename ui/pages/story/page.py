"""Stories: views of the dashboard in order, edited here, presented, and exported as one file.

slides    views drawn with the charts of their pages
routes    presenting, following on phones, links with a QR code, and adding views from any page
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import gradio as gr

from backend.errors import NotFoundError, SlimscopeError
from backend.queue import stories as writing
from backend.queue.actor import Actor
from backend.queue.permissions import may_not_change
from backend.queue.stories import StoryView, runs_of, stored_views, stories, story
from backend.store.session import now_ms
from ui import pages
from ui.format import href
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, on_load, query
from ui.gradio_patches import event_data
from ui.pages.story.slides import exported
from ui.templates import fragments
from ui.widgets.html import Download, file_payload, notice, show_error, show_html
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/story/page.html")
# Gradio finds the events of a component by the quoted names in this script
SCRIPT = (
    "const act = (data) => trigger('act', data); "
    "slimscope.htmlPanel(element, () => {}, act); slimscope.story(element, act)"
)


class ListedView(NamedTuple):
    """A view in the editor."""

    view: StoryView
    title: str


class StoryPanel(gr.HTML):
    """The list of stories or the editor of one; raises `act` as an `HtmlPanel` does."""

    def __init__(self, **options: Any) -> None:
        super().__init__("", js_on_load=SCRIPT, apply_default_css=False, **options)


def build() -> None:
    message = notice("story-notice")
    panel = StoryPanel(elem_id="story-panel", min_height=240)
    done = Outputs(message=message, file=Download())
    done["leave"] = gr.HTML(  # opens the address it is given
        None, html_template="", js_on_load="slimscope.leave(props, watch)", elem_classes="saver"
    )
    on_load(draw, None, panel)
    acted = panel.act(done.named(act), None, done.components, **PRIVATE_EVENT)
    acted.then(draw, None, panel, **SILENT_EVENT)


def draw(request: gr.Request) -> str:
    number, off = _number(query(request, "n")), may_not_change(current_user(request))
    if number is None:
        rows = [(row, stored_views(row.views)) for row in stories()]
        listed = [(row, len(views), runs_of(views)) for row, views in rows]
        return str(HTML.listing(listed, now_ms(), off))
    try:
        row = story(number)
    except NotFoundError:
        return str(HTML.unknown(number))
    return str(HTML.editor(row, listed_views(stored_views(row.views)), now_ms(), off))


def listed_views(views: list[StoryView]) -> list[ListedView]:
    """Views with the titles of their pages and charts."""
    known = {page.path: page for page in pages.pages()}
    return [ListedView(view, _title(view, known.get(view.page))) for view in views]


def _title(view: StoryView, page: Page | None) -> str:
    if page is None:
        return f"{view.page}: no such page in this version"
    chart = page.charts.get(view.chart)
    return f"{page.name}: {chart.title}" if chart else page.name


CHANGES: dict[str, Callable[[int, int, str, Actor], None]] = {  # story, view, text, who
    "rename": lambda number, _, text, user: writing.rename_story(number, text, user),
    "write": writing.write_text,
    "move": lambda number, view, text, user: writing.move_view(number, view, _steps(text), user),
    "up": lambda number, view, _, user: writing.move_view(number, view, -1, user),
    "down": lambda number, view, _, user: writing.move_view(number, view, 1, user),
    "remove": lambda number, view, _, user: writing.remove_view(number, view, user),
}


def act(event: gr.EventData, request: gr.Request) -> Updates:
    sent = {key: str(value or "") for key, value in event_data(event).items()}
    do, text, user = sent.get("do", ""), sent.get("text", ""), current_user(request)
    number, view = _number(sent.get("run", "")) or 0, _number(sent.get("file", "")) or 0
    try:
        match do:
            case "create":
                return _opened(writing.create_story(text, user))
            case "import":
                return _opened(writing.import_story(text, user))
            case "delete":
                writing.delete_story(number, user)
                return {"message": show_html(), "leave": str(href("story"))}
            case "export":
                row = story(number)
                name = re.sub(r"[^\w.-]+", "-", row.title).strip("-.") or "story"
                file = file_payload(f"{name}.html", exported(row).encode())
                return {"message": show_html(), "file": file}
        if do in CHANGES:
            CHANGES[do](number, view, text, user)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_html()}


def _opened(number: int) -> Updates:
    return {"message": show_html(), "leave": str(href("story", n=number))}


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 16 else None


def _steps(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,3}", text, re.ASCII) else 0


PAGE = Page("Stories", "story", build, order=95, section="", key="t", heading=False)
