"""Tags, notes and named views: who may write them, and what stays as it is."""

import pytest

from backend.errors import ConfigError
from backend.queue import labels
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from tests.queue.conftest import HOST, bare_job


@pytest.fixture(autouse=True)
def two_runs(tables: Settings) -> None:
    with writing() as session:
        session.add_all(bare_job(id=number) for number in (1, 2))


def tags() -> list[list[str]]:
    return [queries.job(1).tags, queries.job(2).tags]


def test_tags_are_put_on_and_taken_off_without_repeating_themselves() -> None:
    labels.edit(["sds-0001"], HOST, add=["demo"])
    labels.edit([1, 2], HOST, add=["paper", "demo"])
    assert tags() == [["demo", "paper"], ["paper", "demo"]]
    labels.edit([1, 2], HOST, remove=["demo", "never there"])
    assert tags() == [["paper"], ["paper"]]
    history = [(e.type, e.text) for e in queries.events(1)]
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
