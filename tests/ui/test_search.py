"""What the search box finds."""

import pytest

from backend.settings import Settings
from backend.store import queries
from tests.ui.lab import job, store
from tests.ui.visits import Visit
from ui.search import (
    MAX_HITS,
    MAX_OTHERS,
    search_runs,
    search_settings,
    search_tensors,
    search_terms,
)

HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=alert(1)>"


@pytest.fixture
def lab(tables: Settings) -> Settings:
    store(
        job(1, name="half way"),
        job(2, name="after sds-0001", tags=["paper"]),
        job(3, state="failed", config={"model": "smollm2-135m", "pattern": "2:4"}),
        job(4, kind="gone", config={}),
    )
    return tables


def runs(text: str) -> list[str]:
    return [hit["title"] for hit in search_runs(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("   ", []),
        ("half", ["sds-0001"]),
        ("WAY half", ["sds-0001"]),
        ("smollm", ["sds-0003"]),
        ("failed", ["sds-0003"]),
        ("paper", ["sds-0002"]),
        ("gone", ["gone-0004"]),
        ("0003", ["sds-0003"]),
        ("sds-0001", ["sds-0001", "sds-0002"]),  # the run itself leads
        ("half paper", []),
        ("%", []),
        ("_", []),
    ],
)
def test_every_word_must_be_there(lab: Settings, text: str, wanted: list[str]) -> None:
    assert runs(text) == wanted


def test_the_newest_come_first_and_not_too_many(lab: Settings) -> None:
    store(*[job(n, name="many") for n in range(10, 30)])
    assert runs("many") == [f"sds-{n:04d}" for n in range(29, 29 - MAX_HITS, -1)]
    (hit,) = search_runs("paper")
    assert hit == {
        "title": "sds-0002",
        "about": "succeeded · after sds-0001 · toy · #paper",
        "to": "run?id=sds-0002",
    }


def test_terms_lead_to_their_place_in_help(visit: Visit) -> None:
    hits = visit().get("/slimscope/search", params={"q": "fisher"}).json()
    assert [hit["to"] for hit in hits] == ["#term-fisher-information"]
    assert 'id="term-fisher-information"' in visit().get("/slimscope/help").text
    assert len(search_terms("s")) == MAX_OTHERS and search_terms(" ") == []
    told = search_terms("half-quadratic zero")  # of no title: of a definition
    assert [hit["title"] for hit in told] == ["HQQ"]
    assert [hit["title"] for hit in search_terms("smaller model")] == ["What does this do?"]


def test_tensors_and_settings_are_found(seeded: Settings) -> None:
    hits = search_tensors("UP 0")
    recorded = [job.run for job in queries.runs_with_weights()]
    assert {hit["title"] for hit in hits} == {"Block 0, up_proj"}
    assert [hit["about"] for hit in hits] == [f"tensor of {run}" for run in recorded]
    for words in ("block 1 up_proj", "model.layers.1.mlp.up_proj", "layers.1 up_proj"):
        (hit,) = search_tensors(f"{words} sds-0001")
        assert hit["title"] == "Block 1, up_proj" and "run=sds-0001&" in hit["to"]
    for text in ("", "up 99", "0 1", "sds-0001", "sds-9999 up", HOSTILE, "%", "."):
        assert search_tensors(text) == []
    assert search_settings("pattern")[0]["to"] == "new-run?kind=sds"
    assert (
        search_settings("new run: dl")[0]["to"] == "new-run?kind=dlqat"
        and search_settings("") == []
    )


def test_an_address_with_several_fields_is_no_markup(seeded: Settings, visit: Visit) -> None:
    hits = visit().get("/slimscope/search", params={"q": "up 0"}).json()
    assert "&tensor=model.layers.0.mlp.up_proj" in hits[0]["to"]


def test_the_answer_is_data_and_never_markup(visit: Visit) -> None:
    store(job(50, name=HOSTILE))
    answer = visit().get("/slimscope/search", params={"q": "onerror=alert"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()[0]["about"].startswith(f"succeeded · {HOSTILE}")
    assert visit().get("/slimscope/search").json() == []
    assert visit().get("/slimscope/search", params={"q": "x" * 10_000}).json() == []
