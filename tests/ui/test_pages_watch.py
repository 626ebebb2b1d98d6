"""Overview, Jobs and Runs on a data folder with a run in every state."""

from __future__ import annotations

import base64
import re
from types import SimpleNamespace
from typing import Any

import pytest

from backend.queue import supervisor
from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from ui.components import actions
from ui.components.actions import deeds, perform
from ui.pages import jobs, overview, runs

HOST, GUEST = ("127.0.0.1", "localhost:7860"), ("10.0.0.7", "lab:7860")


def asked(who: tuple[str, str] = HOST, **query: str) -> Any:
    """What a page is asked: the address, and by whom."""
    client, name = who
    return SimpleNamespace(
        query_params=query, client=SimpleNamespace(host=client), headers={"host": name}
    )


def pressed(do: str, run: str) -> Any:
    return SimpleNamespace(_data={"do": do, "run": run})


@pytest.fixture(autouse=True)
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "ensure", lambda: None)


def board(**query: str) -> str:
    return str(jobs.draw(asked(**query))[0])


# Overview -----------------------------------------------------------------------------------------


def test_the_first_visit_explains_and_offers_one_thing_to_do(current: Settings) -> None:
    upgrade()
    html = overview.draw(asked())
    assert "No runs yet" in html
    assert 'href="launch?kind=sds"' in html
    assert "Toy stories" in html and "ready" in html


def test_the_overview_shows_what_runs_waits_ended_and_failed(seeded: Settings) -> None:
    html = overview.draw(asked())
    for run in ("sds-0001", "sds-0002", "sds-0003", "sds-0004"):
        assert f'href="run?id={run}"' in html
    assert 'value="0.6100"' in html
    assert "The model ran out of memory." in html


# Jobs ---------------------------------------------------------------------------------------------


def test_active_jobs_stand_in_queue_order_with_place_and_progress(seeded: Settings) -> None:
    html = board()
    assert re.findall(r'id=(sds-\d+)"', html) == ["sds-0002", "sds-0003"]
    assert "about 4 min" in html or "about 5 min" in html
    assert 'data-testid="cancel-sds-0003"' in html
    assert re.search(r'<td class="num">1</td><td><a[^>]*id=sds-0003', html)


def test_ended_and_failed_jobs_have_their_own_lists(seeded: Settings) -> None:
    assert set(re.findall(r'id=(sds-\d+)"', board(state="ended"))) == {"sds-0001", "sds-0005"}
    failed = board(state="failed")
    assert re.findall(r'id=(sds-\d+)"', failed) == ["sds-0004"]
    assert "resume-sds-0004" in failed and "retry-sds-0004" in failed
    assert board(state="nonsense") == board()


def test_empty_lists_say_so_and_lead_on(current: Settings) -> None:
    upgrade()
    assert "Nothing runs and nothing waits." in board()
    assert 'href="launch"' in board(state="failed")


def test_guests_see_the_buttons_with_the_reason_and_are_refused(seeded: Settings) -> None:
    html = str(jobs.draw(asked(GUEST))[0])
    button = re.search(r'<button[^>]*data-testid="cancel-sds-0003"[^>]*>', html)
    assert button and " disabled " in button[0] and actions.GUEST in button[0]
    for do in ("cancel", "kill", "resume", "retry"):
        said = jobs.act(pressed(do, "sds-0004"), asked(GUEST))
        assert "may not" in said["value"]
    assert len(queries.jobs()) == 5


def test_cancelling_twice_from_a_page_that_is_behind_kills_nothing(seeded: Settings) -> None:
    jobs.act(pressed("cancel", "sds-0002"), asked())
    assert queries.job(2).desired == "stop"
    jobs.act(pressed("cancel", "sds-0002"), asked())
    assert queries.job(2).desired == "stop"
    assert [deed for deed, *_ in deeds(queries.job(2))] == ["kill"]
    jobs.act(pressed("kill", "sds-0002"), asked())
    assert queries.job(2).desired == "kill"
    assert deeds(queries.job(2)) == []


def test_retry_makes_a_new_run_with_the_same_config(seeded: Settings) -> None:
    said = jobs.act(pressed("retry", "sds-0004"), asked())
    new, old = queries.job(6), queries.job(4)
    assert "sds-0006" in said["value"]
    assert (new.state, new.parent, old.state) == ("queued", 4, "failed")
    assert {k: new.config[k] for k in old.config} == old.config


def test_resume_queues_the_same_run(seeded: Settings) -> None:
    jobs.act(pressed("resume", "sds-0005"), asked())
    assert queries.job(5).state == "queued"


@pytest.mark.parametrize("do", ["", "delete", "None", "${1}<b>"])
def test_unknown_deeds_are_refused(seeded: Settings, do: str) -> None:
    said = jobs.act(pressed(do, "sds-0002"), asked())
    assert 'role="alert"' in said["value"] and "<b>" not in said["value"]


def test_a_button_on_a_run_that_is_not_there_is_refused(seeded: Settings) -> None:
    for run in ("sds-9999", "", "'; drop table jobs"):
        assert 'role="alert"' in jobs.act(pressed("cancel", run), asked())["value"]
    assert 'role="alert"' in jobs.act(SimpleNamespace(_data=None), asked())["value"]


def test_the_chosen_job_shows_its_history(seeded: Settings) -> None:
    perform("cancel", "sds-0003", jobs.actor(asked()))
    _, _, title, history, _ = jobs.draw(asked(id="sds-0003"))
    assert "sds-0003" in title
    assert history.index("cancelled") < history.index("queued")


def test_a_stalled_queue_is_said(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.STALLED not in board()
    monkeypatch.setattr(queries, "ALIVE_MS", -1)
    assert jobs.STALLED in board()


# Runs ---------------------------------------------------------------------------------------------


def listed(**query: str) -> list[str]:
    return re.findall(r'data-testid="row-(sds-\d+)"', str(runs.draw(asked(**query))[0]))


def test_runs_are_sorted_as_the_address_says(seeded: Settings) -> None:
    assert listed()[0] == "sds-0005"
    assert listed(sort="run", dir="asc") == [f"sds-{i:04d}" for i in range(1, 6)]
    assert listed(sort="ppl", dir="desc")[0] == "sds-0001"
    assert listed(sort="nonsense", dir="sideways") == listed()


def test_the_filter_counts_and_can_be_cleared(seeded: Settings) -> None:
    table, counted = runs.draw(asked(q="half way"))
    assert "row-sds-0002" in table and "1 of 5" in counted
    table, _ = runs.draw(asked(q="no such thing"))
    assert "0 of 5 match." in table and "clear-filter" in table


def test_the_export_holds_what_the_table_shows(seeded: Settings) -> None:

    file = runs.export(asked(q="half way"))
    lines = base64.b64decode(file["data"]).decode().splitlines()
    assert len(lines) == 2 and lines[1].startswith("sds-0002,half way,")


def test_without_runs_the_table_leads_on(current: Settings) -> None:
    upgrade()
    assert "No runs yet." in runs.draw(asked())[0]
    assert len(runs.export(asked())["data"]) > 0


# Everywhere ---------------------------------------------------------------------------------------


def test_texts_from_people_are_never_markup(seeded: Settings) -> None:
    pages = [
        overview.draw(asked()),
        board(state="ended"),
        board(state="failed"),
        *jobs.draw(asked(id="sds-0004"))[2:4],
        runs.draw(asked())[0],
    ]
    for html in pages:
        assert "<img" not in html
        assert "${" not in html
        assert "{{" not in html
    assert sum("onerror=" in html for html in pages) >= 4
