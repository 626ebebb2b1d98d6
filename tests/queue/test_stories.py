"""Stories: who may write them, what they hold, and what is refused."""

import json
from typing import Any

import pytest

from backend.errors import ConfigError, ForbiddenError, NotFoundError
from backend.queue import stories
from backend.queue.actor import Actor
from backend.queue.stories import StoryView

HOST, GUEST = Actor("mira", "host"), Actor("guest", "guest")
VIEW = {"address": "weights?run=sds-0001", "chart": "weights-overlay", "text": "A gap."}
pytestmark = pytest.mark.usefixtures("tables")


def views(number: int) -> list[StoryView]:
    return stories.stored_views(stories.story(number).views)


def test_a_story_is_put_together_and_imported_again() -> None:
    number = stories.create_story(" What 2:4\ncosts ", HOST)
    stories.add_view(number, "weights?run=sds-0003", "", "First.", HOST)
    stories.add_view(number, "compare?ids=sds-0001,sds-0002", "compare-lines", "", HOST)
    stories.write_text(number, 2, "They part\nearly.", HOST)
    stories.move_view(number, 2, 0, HOST)
    assert stories.story(number).title == "What 2:4 costs"
    assert [(view.id, view.page, view.text) for view in views(number)] == [
        (2, "compare", "They part early."),
        (1, "weights", "First."),
    ]
    assert views(number)[0].runs == ["sds-0001", "sds-0002"]
    again = stories.import_story(stories.exported_story(stories.story(number)), HOST)
    assert [view.address for view in views(again)] == [view.address for view in views(number)]
    stories.remove_view(number, 2, HOST)
    stories.add_view(number, "./", "", "", HOST)
    assert [(view.id, view.page) for view in views(number)] == [(1, "weights"), (2, "")]


def test_guests_read_and_change_nothing() -> None:
    number = stories.create_story("Ours", HOST, [StoryView(1, "weights")])
    file = stories.exported_story(stories.story(number))
    for attempt in (
        lambda: stories.create_story("Mine", GUEST),
        lambda: stories.import_story(file, GUEST),
        lambda: stories.rename_story(number, "Mine", GUEST),
        lambda: stories.add_view(number, "weights", "", "Mine", GUEST),
        lambda: stories.write_text(number, 1, "Mine", GUEST),
        lambda: stories.move_view(number, 1, 1, GUEST),
        lambda: stories.remove_view(number, 1, GUEST),
        lambda: stories.delete_story(number, GUEST),
    ):
        with pytest.raises(ForbiddenError):
            attempt()
    assert [row.title for row in stories.stories()] == ["Ours"]
    assert views(number) == [StoryView(1, "weights")]


@pytest.mark.parametrize(
    "file",
    [
        "",
        "<script>alert(1)</script>",
        "[" * 90_000,
        json.dumps({"title": "x", "views": [{}]}),
        json.dumps({"title": "x", "views": [], "slimscope_story": 2}),
        json.dumps({"title": "x", "views": [], "owner": "slimscope"}),
        json.dumps({"title": "x", "views": [VIEW] * 41}),
        json.dumps({"title": "x" * 121, "views": []}),
        json.dumps({"title": "x", "views": [VIEW | {"text": "x" * 401}]}),
        json.dumps({"title": "x", "views": [VIEW | {"text": 1e308}]}),
        json.dumps({"title": "x", "views": [VIEW | {"chart": "<b>"}]}),
        json.dumps({"title": "x" * 250_000, "views": []}),
        *(
            json.dumps({"title": "x", "views": [VIEW | {"address": address}]})
            for address in (
                "https://evil.example/",
                "//evil.example",
                "javascript:alert(1)",
                "../../etc",
                "weights/../host",
                'weights?"><script>',
                "weights?" + "x" * 2001,
                "\u202eweights",
            )
        ),
    ],
)
def test_a_file_that_is_no_story_is_refused_and_leaves_nothing(file: str) -> None:
    with pytest.raises(ConfigError):
        stories.import_story(file, HOST)
    assert stories.stories() == []


def test_what_a_story_cannot_hold_is_refused_and_changes_nothing() -> None:
    number = stories.create_story("Full", HOST, [StoryView(0, "weights") for _ in range(40)])
    with pytest.raises(ConfigError, match="40 views"):
        stories.add_view(number, "weights", "", "", HOST)
    with pytest.raises(ConfigError, match="characters"):
        stories.write_text(number, 1, "x" * 401, HOST)
    with pytest.raises(ConfigError, match="characters"):
        stories.rename_story(number, " \n", HOST)
    assert len(views(number)) == 40 and stories.story(number).title == "Full"


def test_rows_that_cannot_be_read_are_left_out() -> None:
    kept: dict[str, Any] = {"id": 3, "address": "runs", "color": "unknown"}
    rows = [{"address": "no id"}, {"id": 1}, "no view", kept]
    assert stories.stored_views(rows) == [StoryView(3, "runs")]
    assert stories.stored_views({}) == []


def test_a_deleted_story_says_so() -> None:
    number = stories.create_story("Gone", HOST)
    stories.delete_story(number, HOST)
    with pytest.raises(NotFoundError):
        stories.add_view(number, "runs", "", "", HOST)
