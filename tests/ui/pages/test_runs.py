"""The page Runs: what the address shows, and what can be done to the selected runs."""

import base64
import json
import re
from html import unescape
from urllib.parse import parse_qs

import pytest

from backend.settings import Settings
from backend.store import queries
from tests.ui.lab import GUEST, HOST, asked, job, measured, pressed, store
from ui.pages.runs import page as runs
from ui.runs.groups import GROUPINGS
from ui.runs.view import TableQuery, query_runs, saved_query

HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=alert(1)>{{value}}"


@pytest.fixture
def lab(tables: Settings) -> Settings:
    """Six runs: four measured, one failed, one waiting."""
    store(
        job(1, name="half way"),
        job(2, tags=["demo"]),
        job(3),
        job(4, name=HOSTILE, note=HOSTILE),
        job(5, state="failed", error={"what": HOSTILE}),
        job(6, state="queued", started_at=None, finished_at=None),
        *measured(1, 12.0, 0.5),
        *measured(2, 15.0, 0.3),
        *measured(3, 30.0, 0.7),
        *measured(4, 11.0, 0.2),
    )
    return tables


def table(**query: str) -> str:
    return str(runs.draw(asked(**query))["table"])


def listed(**query: str) -> list[int]:
    return [int(n) for n in re.findall(r'data-testid="row-sds-(\d+)"', table(**query))]


# the address --------------------------------------------------------------------------------------


def test_the_address_sorts_filters_and_chooses_columns(lab: Settings) -> None:
    assert listed() == [5, 4, 3, 2, 1]  # 6 stands in the queue
    assert listed(q="state:queued") == [6]
    assert listed(sort="run", dir="asc") == [1, 2, 3, 4, 5]
    assert listed(sort="ppl", dir="asc")[:4] == [4, 1, 2, 3]
    assert listed(sort="nonsense", dir="sideways") == listed()
    assert listed(q="sparsity>0.4 perplexity<20") == [1]
    assert "1 of 6" in table(q="half way")
    nothing = table(q="no such thing")
    assert "0 of 6" in nothing and "clear-filter" in nothing
    assert "No column is called &#39;sparsty&#39;" in table(q="sparsty>1")
    html = table(cols="seed,perplexity")
    assert re.findall(r'data-testid="sort-([\w]+)"', html) == ["run", "perplexity", "seed"]
    tools = str(runs.draw(asked(cols="seed"))["tools"])
    assert re.search(r'aria-pressed="true"[^>]*data-testid="column-seed"', tools)
    assert "Held-out loss, nats per token" in tools


def test_an_order_by_a_result_says_that_it_mixes_models(lab: Settings) -> None:
    store(job(7, config={"model": "smollm2-135m"}))
    assert "these are of" not in table(sort="perplexity"), "without a result of the other model"
    other, same = {"model": "smollm2-135m"}, {"model": "sds-0001"}
    store(job(8, config=other), *measured(8, 20.0), job(9, config=same), *measured(9, 21.0))
    assert "these are of 2." in table(sort="perplexity")
    assert "these are of" not in table(sort="perplexity", group="model") + table(sort="took")


def test_baseline_and_five_pins_stay_whatever_is_filtered_and_are_compared(lab: Settings) -> None:
    assert listed(q="state:failed", base="sds-0001", pins="sds-0003,sds-0002") == [1, 3, 2, 5]
    html = table(q="no such thing", base="sds-0001")
    assert "row-sds-0001" in html and "clear-filter" in html
    html = table(base="sds-0001", q="zeros>0.6")
    assert "▲" in html and "+18.00" in html and "worse" in html
    pins = ",".join(f"sds-000{i}" for i in range(1, 7))
    assert len(query_runs(TableQuery.from_address(asked(pins=pins))).pinned) == 5
    html = table(pins=pins.removesuffix(",sds-0006"), pick="sds-0006")
    assert (
        '<button type="button" class="small" disabled title="At most 5 runs can be pinned">' in html
    )
    html = table(pick="sds-0002,sds-0003", base="sds-0001")
    assert "compare?ids=sds-0001%2Csds-0002%2Csds-0003&amp;base=sds-0001" in html
    assert "2 to 6 runs can be compared" in table(pick="sds-0002")


@pytest.mark.parametrize("odd", ["'", "<b>", "1;drop", "-1", "9" * 400, "../..", HOSTILE])
def test_odd_addresses_show_the_usual_page(lab: Settings, odd: str) -> None:
    names = ("sort", "dir", "page", "cols", "base", "pins", "pick")
    html = table(**dict.fromkeys(names, odd))
    assert [int(n) for n in re.findall(r'data-testid="row-sds-(\d+)"', html)] == listed()


def test_pages_turn(tables: Settings) -> None:
    store(*(job(i) for i in range(1, 121)))
    assert listed() == list(range(120, 120 - GROUPINGS["sweep"].page_groups, -1))
    assert listed(page="3") == list(range(20, 0, -1))
    assert listed(page="99") == listed(page="3")  # a filter has made the pages fewer
    html = table(page="2")
    assert "Page 2 of 3" in html
    turns = re.findall(r'data-testid="(?:previous|next)" data-view="([^"]+)"', html)
    assert [json.loads(unescape(view)) for view in turns] == [{"page": "1"}, {"page": "3"}]


def test_without_runs_the_table_leads_on(tables: Settings) -> None:
    assert "No runs yet." in table()


# what is done to several --------------------------------------------------------------------------


def did(do: str, pick: str, text: str = "", who: tuple[str, str] = HOST) -> str:
    return str(runs.act(pressed(do, text=text), asked(who, pick=pick))["message"]["value"])


def test_selected_runs_that_the_filter_hides_are_told(lab: Settings) -> None:
    both = {"pick": "sds-0001,sds-0002"}
    assert "2 selected<" in table(**both)
    assert "2 selected (1 hidden by the filter)" in table(**both, q="sds-0001")


def test_selected_runs_are_tagged_untagged_and_noted(lab: Settings) -> None:
    assert "Saved: 2 runs." in did("tag", "sds-0001,sds-0002", "paper demo")
    assert [queries.job(i).tags for i in (1, 2)] == [["paper", "demo"], ["demo", "paper"]]
    did("untag", "sds-0001", "paper")
    assert queries.job(1).tags == ["demo"]
    did("note", "sds-0003", "look again")
    assert queries.job(3).note == "look again"
    assert listed(q="tag:demo") == [2, 1]
    assert listed(q='"look again"') == [3]


def test_cancel_and_resume_take_only_those_they_fit(lab: Settings) -> None:
    everything = ",".join(f"sds-000{i}" for i in range(1, 7))
    bar = table(pick=everything)
    assert "Remove sds-0006 from the queue?" in bar and "bulk-resume" in bar
    assert "bulk-cancel" not in table(pick="sds-0001") and "bulk-tag" in table(pick="sds-0001")
    assert "sds-0006 is cancelled." in did("cancel", everything)
    assert queries.job(6).state == "cancelled" and queries.job(1).state == "succeeded"
    assert "Queued again: 2 runs." in did("resume", everything)
    assert {queries.job(i).state for i in (5, 6)} == {"queued"}
    store(job(7, state="running", finished_at=None))
    did("cancel", "sds-0007")
    assert queries.job(7).desired == "stop"
    did("cancel", "sds-0007")
    assert queries.job(7).desired == "stop"


@pytest.mark.parametrize(
    ("do", "pick", "text"),
    [
        ("tag", "", "x"),
        ("tag", "sds-0001", "<b>"),
        ("frobnicate", "sds-0001", ""),
        ("", "sds-0001", ""),
    ],
)
def test_what_cannot_be_done_is_told(lab: Settings, do: str, pick: str, text: str) -> None:
    said = did(do, pick, text)
    assert 'role="alert"' in said and "<b>" not in said


def test_guests_see_why_and_are_refused(lab: Settings) -> None:
    html = str(runs.draw(asked(GUEST, pick="sds-0001,sds-0006")))
    for deed in ("bulk-tag", "bulk-cancel", "save-view"):
        button = re.search(rf'<button[^>]*data-testid="{deed}"[^>]*>', html)
        assert button and " disabled " in button[0] and "Guests" in button[0]
    for do in ("tag", "note", "cancel", "resume", "save-view", "delete-view"):
        assert "may not" in did(do, "sds-0006", "x", who=GUEST)
    assert queries.job(6).state == "queued" and queries.views() == []
    assert 'data-testid="compare"' in html  # looking is free


def test_an_action_is_taken_back_for_the_runs_it_changed(lab: Settings) -> None:
    """Run 2 has the tag before, run 6 waits and is not archived."""
    undo = r'data-do="undo" data-run="([^"]*)" data-file="([^"]*)"[^>]*data-text="([^"]*)"'
    both = "sds-0001,sds-0002"
    (taken,) = re.findall(undo, did("tag", both, "demo"))
    assert taken == ("sds-0001", "untag", "demo")

    def back(runs_: str, action: str, text: str = "", who: tuple[str, str] = HOST) -> str:
        event = pressed("undo", runs_, text, action)
        return str(runs.act(event, asked(who))["message"]["value"])

    back(*taken)
    assert [queries.job(i).tags for i in (1, 2)] == [[], ["demo"]]
    for action, is_there in (("archive", "archived_at"), ("delete", "removed_at")):
        (taken,) = re.findall(undo, did(action, both))
        assert taken[0] == both and getattr(queries.job(1), is_there)
        assert "may not" in back(*taken, who=GUEST) and getattr(queries.job(1), is_there)
        back(*taken)
        assert not getattr(queries.job(1), is_there)
    for bad in (("", "untag"), ("sds-0001", "purge"), ("sds-9999", "restore"), (HOSTILE, "<b>")):
        html = back(*bad)
        assert "<b>" not in html and "<img" not in html
    assert not queries.job(1).removed_at
    assert back(",".join(f"sds-{n:04d}" for n in range(1, 500)), "restore")  # at most 100 are read


# views and files ----------------------------------------------------------------------------------


def test_a_view_keeps_what_is_looked_at_and_not_what_is_selected(lab: Settings) -> None:
    look = {
        "q": "tag:demo",
        "sort": "perplexity",
        "base": "sds-0001",
        "pick": "sds-0002",
        "page": "2",
        "odd": "x",
    }
    runs.act(pressed("save-view", text="best <b>"), asked(**look))
    (view,) = queries.views()
    assert parse_qs(view.query) == {
        "q": ["tag:demo"],
        "sort": ["perplexity"],
        "base": ["sds-0001"],
    }
    tools = str(runs.draw(asked())["tools"])
    assert 'href="runs?q=tag%3Ademo&amp;sort=perplexity&amp;base=sds-0001"' in tools
    assert "best &lt;b&gt;" in tools
    runs.act(pressed("delete-view", run="best <b>"), asked())
    assert queries.views() == []
    assert saved_query({}) == ""


def test_the_export_holds_all_pages_in_the_order_of_the_screen(lab: Settings) -> None:
    look = asked(q="perplexity>0", sort="perplexity", dir="asc", cols="perplexity", page="7")
    csv_file, json_file = (runs.act(pressed(form), look)["download"] for form in ("csv", "json"))
    lines = base64.b64decode(csv_file["data"]).decode().splitlines()
    assert lines == [
        "run,perplexity",
        "sds-0004,11.0",
        "sds-0001,12.0",
        "sds-0002,15.0",
        "sds-0003,30.0",
    ]
    assert [r["perplexity"] for r in json.loads(base64.b64decode(json_file["data"]))] == [
        11.0,
        12.0,
        15.0,
        30.0,
    ]
    assert json_file["name"] == "slimscope-runs.json"
