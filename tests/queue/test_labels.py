"""Tags, notes, named views, stories, and deleting runs: who may, what stays, what comes back."""

import json
from typing import Any

import pytest

from backend.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError
from backend.queue import labels, removal, scheduling, stories
from backend.queue.actor import Actor
from backend.queue.artifacts import run_folder
from backend.queue.lifecycle import note
from backend.queue.service import enqueue
from backend.queue.stories import StoryView
from backend.settings import Settings, settings
from backend.store import queries
from backend.store.dialects import dialect_of
from backend.store.session import engine_for, now_ms, writing
from backend.store.states import State
from backend.store.tables import Job, Result, Table, example_number, run_name
from tests.queue.conftest import HOST, bare_job
from ui.runs.rows import all_rows
from ui.runs.view import TableQuery, query_runs
from ui.search import search_runs

GUEST = Actor("guest", "guest")


def add(number: int, state: State = State.SUCCEEDED, **config: str) -> None:
    with writing() as session:
        session.add(bare_job(id=number, config=config, state=state, finished_at=now_ms()))
        session.flush()
        note(session, number, "added", "mira")
        session.add(Result(job_id=number, stage="sds", family="perplexity", value=9.0))


def continue_numbering() -> None:
    """The next run gets the number after the last one there is."""
    with engine_for(settings().url).begin() as connection:
        dialect_of(connection).continue_numbering(connection, Table.metadata)


@pytest.fixture(autouse=True)
def two_runs(tables: Settings) -> None:
    for number in (1, 2):
        add(number)
    continue_numbering()
    model = run_folder("sds-0001") / "model"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"w" * 1000)


def tags() -> list[list[str]]:
    return [queries.job(1).tags, queries.job(2).tags]


def test_tags_are_put_on_and_taken_off_without_repeating_themselves() -> None:
    labels.edit(["sds-0001"], HOST, add=["demo"])
    labels.edit([1, 2], HOST, add=["paper", "demo"])
    assert tags() == [["demo", "paper"], ["paper", "demo"]]
    labels.edit([1, 2], HOST, remove=["demo", "never there"])
    assert tags() == [["paper"], ["paper"]]
    history = [(e.type, e.text) for e in queries.events(1)][1:]
    assert history == [
        ("tagged", "demo"),
        ("tagged", "paper demo"),
        ("untagged", "demo never there"),
    ]


@pytest.mark.parametrize("text", ["", "  ", "<b>", "a b/c\td;e", "x" * 41, "${1}"])
def test_odd_tags_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        labels.tags_in(text)


def test_a_run_has_at_most_so_many_tags_and_none_is_written_beyond() -> None:
    labels.edit([1], HOST, add=[str(i) for i in range(labels.MOST_TAGS)])
    with pytest.raises(ConfigError):
        labels.edit([2, 1], HOST, name="another", add=["one more"])
    assert tags()[1] == [] and queries.job(2).name != "another"


def test_a_view_is_saved_replaced_and_forgotten() -> None:
    labels.save_view(" best ", "sort=perplexity", HOST)
    labels.save_view("best", "sort=zero_share", HOST)
    labels.save_view("all", "", HOST)
    assert [(v.name, v.query, v.owner) for v in queries.views()] == [
        ("all", "", "mira"),
        ("best", "sort=zero_share", "mira"),
    ]
    labels.delete_view("all", HOST)
    assert [v.name for v in queries.views()] == ["best"]
    for name in ("", "  ", "x" * 61):
        with pytest.raises(ConfigError):
            labels.save_view(name, "", HOST)


# stories ------------------------------------------------------------------------------------------


VIEW = {"address": "weights?run=sds-0001", "chart": "weights-overlay", "text": "A gap."}


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
    stories.delete_story(number, HOST)
    with pytest.raises(NotFoundError):
        stories.add_view(number, "runs", "", "", HOST)


def test_guests_read_and_change_nothing() -> None:
    number = stories.create_story("Ours", HOST, [StoryView(1, "weights")])
    file = stories.exported_story(stories.story(number))
    for change, given in (
        (stories.create_story, ("Mine",)),
        (stories.import_story, (file,)),
        (stories.rename_story, (number, "Mine")),
        (stories.add_view, (number, "weights", "", "Mine")),
        (stories.write_text, (number, 1, "Mine")),
        (stories.move_view, (number, 1, 1)),
        (stories.remove_view, (number, 1)),
        (stories.delete_story, (number,)),
    ):
        with pytest.raises(ForbiddenError):
            change(*given, GUEST)
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
    for change, given, why in (
        (stories.add_view, (number, "weights", "", ""), "40 views"),
        (stories.write_text, (number, 1, "x" * 401), "characters"),
        (stories.rename_story, (number, " \n"), "characters"),
    ):
        with pytest.raises(ConfigError, match=why):
            change(*given, HOST)
    assert len(views(number)) == 40 and stories.story(number).title == "Full"


def test_rows_that_cannot_be_read_are_left_out() -> None:
    kept: dict[str, Any] = {"id": 3, "address": "runs", "color": "unknown"}
    rows = [{"address": "no id"}, {"id": 1}, "no view", kept]
    assert stories.stored_views(rows) == [StoryView(3, "runs")]
    assert stories.stored_views({}) == []


# removal ------------------------------------------------------------------------------------------


def listed(q: str = "") -> list[str]:
    query = TableQuery(q, "age", True, 1, (), "", (), ())
    return sorted(row.job.run for row in query_runs(query).rows)


def test_a_deleted_run_is_hidden_everywhere_and_comes_back_whole() -> None:
    assert listed() == ["sds-0001", "sds-0002"]
    removal.remove(["sds-0001"], HOST)
    assert [job.run for job in queries.jobs()] == ["sds-0002"]
    assert [row.job.run for row in all_rows()] == ["sds-0002"]
    assert [hit["title"] for hit in search_runs("sds")] == ["sds-0002"]
    assert scheduling.status().finished == 1
    assert listed() == ["sds-0002"] and listed("deleted:yes") == ["sds-0001"]
    assert (run_folder("sds-0001") / "model" / "weights").exists()
    assert [job.run for job in removal.restore([1], HOST)] == ["sds-0001"]
    assert listed() == ["sds-0001", "sds-0002"]
    assert [e.type for e in queries.events(1)] == ["added", "deleted", "restored"]


def test_a_purge_frees_the_disk_and_the_number_is_not_given_again() -> None:
    removal.remove([1, 2], HOST)
    assert removal.purge([1], HOST) == 1000
    assert not run_folder("sds-0001").exists() and not queries.results([1])
    assert listed("deleted:yes") == ["sds-0002"]
    with pytest.raises(ConflictError, match="cannot be restored"):
        removal.restore([1], HOST)
    assert queries.job(1).purged and queries.events(1)[-1].text == "1 kB freed"
    assert enqueue("sds", {}, HOST).id == 3


def test_only_what_was_deleted_a_day_ago_is_purged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removal.remove([1], HOST)
    removal.purge_expired()
    assert not queries.job(1).purged
    tomorrow = now_ms() + removal.DAY_MS + 1
    monkeypatch.setattr(removal, "now_ms", lambda: tomorrow)
    removal.purge_expired()
    assert queries.job(1).purged and not queries.job(2).purged


def test_what_is_needed_or_not_ended_is_not_deleted() -> None:
    add(3, State.RUNNING, model="sds-0001")
    with pytest.raises(ConflictError, match="is running"):
        removal.remove([2, 3], HOST)
    with pytest.raises(ConflictError, match="sds-0003 uses it"):
        removal.remove([1], HOST)
    add(4, State.QUEUED, drafters="amphista-0009, sds-0002")
    with pytest.raises(ConflictError, match="sds-0004 uses it"):
        removal.remove([2], HOST)
    assert not any(job.removed_at for job in queries.jobs())  # all or none
    with pytest.raises(ForbiddenError):
        removal.remove([1], GUEST)


def test_an_archived_run_leaves_the_list_until_it_is_asked_for() -> None:
    removal.archive([1], HOST)
    assert listed() == ["sds-0002"] and listed("archived:yes") == ["sds-0001"]
    assert [row.job.run for row in all_rows()] == ["sds-0002", "sds-0001"]
    removal.archive([1], HOST, back=True)
    assert listed() == ["sds-0001", "sds-0002"]


def test_an_example_has_a_name_and_takes_no_number() -> None:
    with writing() as session:
        for number in (1, 2):
            session.delete(session.get_one(Job, number))
    continue_numbering()
    add(number := example_number("sds", 1))
    assert run_name("sds", number) == "sds-example" == queries.job("sds-example").run
    for change in ({"name": "mine"}, {"text": "mine"}):
        with pytest.raises(ConflictError, match="read-only"):
            labels.edit(["sds-example"], HOST, **change)
    assert [job.run for job in (enqueue("sds", {}, HOST), enqueue("sds", {}, HOST))] == [
        "sds-0001",
        "sds-0002",
    ]
    assert listed() == ["sds-0001", "sds-0002", "sds-example"]
    assert settings().artifacts / "sds-example" == run_folder("sds-example")
