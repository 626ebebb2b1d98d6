"""Stories: the editor, the slides of every chart, and the file a story is exported to."""

import base64
import json
import re
from html import unescape
from typing import Any

import gradio as gr
import pytest

from backend.queue import stories
from backend.queue.actor import Actor
from backend.queue.stories import StoryView, story
from backend.settings import Settings
from backend.store.session import writing
from backend.store.tables import Job
from tests.ui.conftest import HOSTILE
from tests.ui.lab import GUEST, asked, pressed
from ui.frame import PageChart
from ui.pages import pages
from ui.pages.story.page import act, draw
from ui.pages.story.slides import drawable, drawn, exported, slides
from ui.widgets.panel import PlotlyView

HOST = Actor("mira", "host")
TENSOR = "model.layers.1.mlp.up_proj.weight"
COMPARED = "compare?ids=sds-0001,sds-0002"
FAILED = "The chart could not be drawn; the log says why."


@pytest.fixture
def number(seeded: Settings) -> int:
    """A story with a chart of one run, one that compares two, and a whole page."""
    made = stories.create_story(HOSTILE, HOST)
    stories.add_view(made, f"weights?run=sds-0001&tensor={TENSOR}", "weights-overlay", "", HOST)
    stories.add_view(made, COMPARED, "compare-figures", HOSTILE, HOST)
    stories.add_view(made, COMPARED, "", "All of it.", HOST)
    return made


def test_every_chart_of_every_page_can_be_added(built: gr.Blocks) -> None:
    views = {b.elem_id for b in built.blocks.values() if isinstance(b, PlotlyView)}
    assert views <= {name for page in pages() for name in page.charts}


def test_every_chart_is_drawn_from_an_address_or_says_why_not(seeded: Settings) -> None:
    """Of runs that have all figures, of those that have none, and without an address."""
    parts = [
        drawn(StoryView(1, f"{page.path}?{query}", name), name, page.charts)
        for page in pages()
        for name in page.charts
        for query in ("", "run=sds-0001&ids=sds-0001,sds-0002&id=sds-0001", "run=sds-0099&id=x")
    ]
    assert [part.title for part in parts if part.sentence == FAILED] == []
    assert all(part.figure or part.rows or part.sentence for part in parts)


def test_the_charts_of_the_page_in_view_are_offered_by_their_own_titles(seeded: Settings) -> None:
    for address in (f"weights?run=sds-0001&tensor={TENSOR}", "run?id=sds-0001", COMPARED):
        offered = drawable(StoryView(1, address))
        titles = [part.title for part in offered.values()]
        assert len(titles) > 1 and len({*titles}) == len(titles), address
    names = drawable(StoryView(1, f"weights?run=sds-0001&tensor={TENSOR}&view=matrix"))
    assert {*names} == {"weights-heatmap", "weights-overlay", "weights-more"}
    assert drawable(StoryView(1, "weights?run=sds-0099")) == drawable(StoryView(1, "nowhere")) == {}


def test_slides_show_the_finding_of_their_view(number: int) -> None:
    chart, table, page = slides(stories.stored_views(story(number).views), is_live=False)
    assert next(t["name"] for t in chart.parts[0].figure["data"]) == "Dense · no exact zeros"
    assert "Perplexity" in str(table.parts[0].rows) and "5.900" in str(table.parts[0].rows)
    assert page.title == "Compare" and 1 < len(page.parts) <= 4
    live = slides(stories.stored_views(story(number).views), is_live=True)
    assert live[2].parts == []


def test_what_is_gone_is_said_in_place(number: int) -> None:
    stories.add_view(number, "weights?run=sds-0001&tensor=gone", "weights-overlay", "", HOST)
    stories.add_view(number, "nowhere?run=sds-0001", "", "", HOST)
    stories.add_view(number, "weights", "weights-nothing", "", HOST)
    with writing() as session:
        session.delete(session.get_one(Job, 1))
    shown = slides(stories.stored_views(story(number).views), is_live=False)
    assert [bool(slide.parts[0].sentence) for slide in shown] == [True] * 6
    assert FAILED not in str(shown)


def test_one_chart_that_fails_keeps_no_other_away(seeded: Settings, caplog: Any) -> None:
    def fails(_request: gr.Request) -> Any:
        raise ZeroDivisionError

    part = drawn(StoryView(1, "x", "a"), "a", {"a": PageChart("Broken", "", fails)})
    assert part.sentence == FAILED and "ZeroDivisionError" in caplog.text


def test_an_exported_story_holds_all_it_needs_and_no_markup(number: int) -> None:
    file = act(pressed("export", str(number)), asked(GUEST))["file"]
    data = base64.b64decode(file["data"]).decode()
    assert re.fullmatch(r"[\w.-]+\.html", file["name"])
    markup = re.sub(r"<script.*?</script>", "", data, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\b(src|href|action|srcset)=|url\(|<iframe|<link|<base", markup)
    assert f"sds-0001 · {TENSOR}" in markup
    assert "default-src 'none'" in data
    figures = json.loads(re.search(r'id="story-data">(.*?)</script>', data)[1])["figures"]
    assert "1-0" in figures and len(figures) > 1
    again = act(
        pressed("import", text=re.search(r'id="story-file">(.*?)</script>', data)[1]), asked()
    )
    assert story(int(again["leave"].removeprefix("story?n="))).views == story(number).views


def test_what_people_write_stays_text(number: int) -> None:
    for html in (draw(asked()), draw(asked(n=str(number)))):
        assert "<img" not in html and "${" not in html and "{{" not in html
    assert b"<img src" not in exported(story(number))


def _view(do: str, number: int, view: int, text: str = "") -> Any:
    return pressed(do, str(number), text, str(view))


def test_views_are_moved_described_and_removed(number: int) -> None:
    page = asked(n=str(number))
    for view, above, order in (
        ("2", "", [2, 1, 3]),
        ("2", "3", [1, 3, 2]),
        ("3", "1", [1, 3, 2]),
        ("3", "9" * 5000, [3, 1, 2]),
        ("<b>", "1", [3, 1, 2]),
        ("9", "1", [3, 1, 2]),
    ):
        act(pressed("move", view, above), page)
        assert [v.id for v in stories.stored_views(story(number).views)] == order
    act(_view("write", number, 2, "Pruned first."), asked())
    act(_view("remove", number, 1), asked())
    stored = stories.stored_views(story(number).views)
    assert [(view.id, view.text) for view in stored] == [(3, "All of it."), (2, "Pruned first.")]
    assert act(pressed("delete", str(number)), asked())["leave"] == "story"
    assert "There is no story" in draw(asked(n=str(number)))


def test_a_removed_view_is_named_and_put_back_in_its_place(number: int) -> None:
    before = stories.stored_views(story(number).views)
    told = act(_view("remove", number, 2), asked())["message"]["value"]
    assert "Compare: Results" in told and "<img" not in told and "${" not in told
    undo = unescape(re.search(r'data-text="([^"]*)"', told)[1])
    act(pressed("undo", text=undo), asked(GUEST))
    assert len(stories.stored_views(story(number).views)) == 2
    act(pressed("undo", text=undo), asked())
    after = stories.stored_views(story(number).views)
    assert [(v.address, v.text) for v in after] == [(v.address, v.text) for v in before]
    assert act(_view("remove", number, 99), asked())["message"]["value"] == ""


@pytest.mark.parametrize(
    "fields",
    [
        {"address": "https://evil.example/"},
        {"address": "nowhere"},
        {"chart": "weights-nothing"},
        {"at": -1},
        {"at": 10**9},
        {"story": 999},
        {"text": "x" * 401},
        {"extra": 1},
    ],
)
def test_what_is_put_back_is_checked_like_a_new_view(number: int, fields: dict[str, Any]) -> None:
    undo = {"story": number, "address": "weights", "chart": "", "text": "", "at": 0} | fields
    for text in (json.dumps(undo), "{", "[]", "x" * 2_000_000):
        assert 'role="alert"' in act(pressed("undo", text=text), asked())["message"]["value"]
    assert len(stories.stored_views(story(number).views)) == 3


def test_guests_read_and_change_nothing(number: int) -> None:
    assert 'data-order="move"' in draw(asked(n=str(number)))
    assert "data-order" not in draw(asked(GUEST, n=str(number)))
    for do in ("create", "import", "rename", "write", "move", "remove", "delete"):
        said = act(_view(do, number, 1, "1"), asked(GUEST, n=str(number)))
        assert "may not" in said["message"]["value"], do
    assert len(stories.stored_views(story(number).views)) == 3
