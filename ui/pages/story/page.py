"""The page *Stories*: ordered views of the dashboard that are edited here, presented, and exported
as one file.

slides    views drawn with the charts of their pages
routes    presenting, following on phones, links with a QR code, and adding views from any page
"""

import re
from collections.abc import Callable

import gradio as gr
from markupsafe import Markup
from pydantic import ValidationError

from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.queue import stories as writing
from backend.queue.actor import Actor
from backend.queue.permissions import may_not_change
from backend.queue.stories import stored_views, stories, story
from backend.store.session import now_ms
from ui.format import href
from ui.frame import PRIVATE_EVENT, SILENT_EVENT, Page, current_user, on_load, query
from ui.gradio_patches import event_data
from ui.pages.story.routes import NewView, add_view
from ui.pages.story.slides import exported, number_of, page_of
from ui.templates import fragments
from ui.widgets.html import Download, HtmlPanel, file_payload, show_error, show_html
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/story/page.html")
# Gradio finds the events of a component by the quoted names in this script
SCRIPT = (
    "const act = (data) => trigger('act', data); "
    "slimscope.htmlPanel(element, () => {}, act); slimscope.story(element, act)"
)


def build() -> None:
    message = HtmlPanel(visible=False, elem_id="story-notice")
    panel = gr.HTML(
        "", js_on_load=SCRIPT, apply_default_css=False, elem_id="story-panel", min_height=240
    )
    done = Outputs(message=message, file=Download())
    done["leave"] = gr.HTML(  # opens an address
        None, html_template="", js_on_load="slimscope.leave(props, watch)", elem_classes="saver"
    )
    on_load(draw, None, panel)
    acted = panel.act(done.named(act), None, done.components, **PRIVATE_EVENT)
    acted.then(draw, None, panel, **SILENT_EVENT)
    message.on_action(done.named(act), done.components, (draw, None, panel))


def draw(request: gr.Request) -> str:
    number, off = number_of(query(request, "n")), may_not_change(current_user(request))
    if not number:
        listed = [(row, len(stored_views(row.views))) for row in stories()]
        return str(HTML.listing(listed, now_ms(), off))
    try:
        row = story(number)
    except NotFoundError:
        return str(HTML.unknown(number))
    views = [(view, page_of(view)) for view in stored_views(row.views)]
    return str(HTML.editor(row, views, now_ms(), off))


CHANGES: dict[str, Callable[[int, int, str, Actor], None]] = {  # story, view, text, who
    "rename": lambda number, _, text, user: writing.rename_story(number, text, user),
    "write": writing.write_text,
}


def act(event: gr.EventData, request: gr.Request) -> Updates:
    sent = {key: str(value or "") for key, value in event_data(event).items()}
    do, text, user = sent.get("do", ""), sent.get("text", ""), current_user(request)
    number, view = number_of(sent.get("run", "")), number_of(sent.get("file", ""))
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
                return {"message": show_html(), "file": file_payload(f"{name}.html", exported(row))}
            case "move":  # the list sends the view and the one then above it
                number = number_of(query(request, "n"))
                writing.move_view(number, number_of(sent.get("run", "")), number_of(text), user)
            case "remove":
                return {"message": show_html(_removed(number, view, user))}
            case "undo":
                add_view(_undone(text), user)
        if do in CHANGES:
            CHANGES[do](number, view, text, user)
    except SlimscopeError as error:
        return {"message": show_error(error)}
    return {"message": show_html()}


def _undone(text: str) -> NewView:
    try:
        return NewView.model_validate_json(text)
    except ValidationError:
        raise ConfigError("Nothing was put back.", "The view is malformed.") from None


def _removed(number: int, view: int, user: Actor) -> Markup:
    """Remove a view; return the message, which names the view and puts it back."""
    views = stored_views(story(number).views)
    writing.remove_view(number, view, user)
    at = next((at for at, each in enumerate(views) if each.id == view), None)
    if at is None:
        return Markup()
    gone = views[at]
    undo = NewView(story=number, address=gone.address, chart=gone.chart, text=gone.text, at=at)
    return HTML.removed(gone, page_of(gone), undo.model_dump_json())


def _opened(number: int) -> Updates:
    return {"message": show_html(), "leave": str(href("story", n=number))}


PAGE = Page("Stories", "story", build, 95, section="", key="t", heading=False)
