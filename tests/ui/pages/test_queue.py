"""Jobs, and what holds everywhere, on a data folder with a run in every state."""

import re

import pytest
from sqlalchemy import update

from backend.queue import permissions, scheduling
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import ACTIVE, State
from backend.store.tables import Job
from tests.queue.conftest import HOST
from tests.ui.lab import GUEST, asked, job, pressed, store
from ui.pages.queue import page as jobs
from ui.runs.actions import act, actions
from ui.runs.html import progress


def board(**query: str) -> str:
    return str(jobs.draw(asked(**query))["board"])


# Jobs ---------------------------------------------------------------------------------------------


def test_active_jobs_stand_in_queue_order_with_place_and_progress(seeded: Settings) -> None:
    html = board()
    assert re.findall(r'id=(sds-\d+)"', html) == ["sds-0002", "sds-0003"]
    assert "about 4\u00a0min" in html or "about 5\u00a0min" in html
    assert re.search(
        r"<td>starts in about [45]\u00a0min</td>", html
    )  # when the one before has ended
    assert 'data-testid="cancel-sds-0003"' in html
    assert re.search(r'<td class="num">1</td><td><a[^>]*id=sds-0003', html)


def test_the_blocks_of_the_model_fill_in_as_a_pass_goes_through_them() -> None:
    running = {"state": "running", "done": 0.4, "total": 1.0}
    html = progress(job(1, **running, stage="Re-dense, block 2 of 3"))
    cells = re.findall(r"<i(?: class=\"(\w+)\")?></i>", html)
    assert cells == ["past", "now", ""] and "Re-dense, block 2 of 3" in html
    assert 'class="blocks"' not in progress(job(1, **running, stage="Held-out loss"))


def test_ended_and_failed_jobs_have_their_own_lists(seeded: Settings) -> None:
    assert set(re.findall(r'id=(sds-\d+)"', board(state="ended"))) == {"sds-0001", "sds-0005"}
    failed = board(state="failed")
    assert re.findall(r'id=(sds-\d+)"', failed) == ["sds-0004"]
    assert "resume-sds-0004" in failed and "retry-sds-0004" in failed
    assert '<th scope="col">Why</th>' in failed and ">Why<" not in board(state="ended")
    assert board(state="nonsense") == board()
    before = board(state="ended")
    store(job(-1))  # an example, which nobody queued here
    assert board(state="ended") == before
    with writing() as session:
        session.execute(update(Job).where(Job.id == -1).values(removed_at=1))
    assert board(state="ended") == before


def test_an_idle_queue_lists_what_has_ended(seeded: Settings) -> None:
    assert "Nothing is running." not in board()
    with writing() as session:
        session.execute(update(Job).where(Job.state.in_(ACTIVE)).values(state=State.CANCELLED))
    ended = {"sds-0001", "sds-0002", "sds-0003", "sds-0005"}
    assert "Nothing is running." in board() and {*re.findall(r'id=(sds-\d+)"', board())} == ended
    assert "Nothing is running." not in board(state="ended")
    assert "Ended lately" in board() and "Ended lately" not in board(state="ended")
    assert "width:100.0%" in board()  # that which took longest


def test_guests_see_the_buttons_with_the_reason_and_are_refused(seeded: Settings) -> None:
    html = str(jobs.draw(asked(GUEST))["board"])
    button = re.search(r'<button[^>]*data-testid="cancel-sds-0003"[^>]*>', html)
    assert button and " disabled " in button[0] and permissions.READ_ONLY in button[0]
    for do in ("cancel", "kill", "next", "resume", "retry"):
        said = act(pressed(do, "sds-0004"), asked(GUEST))
        assert "may not" in said["value"]
    assert len(queries.jobs()) == 5


def test_cancelling_twice_from_a_page_that_is_behind_kills_nothing(seeded: Settings) -> None:
    said = act(pressed("cancel", "sds-0002"), asked())["value"]
    assert "was asked to stop at the next safe point" in said  # true also when it has stopped
    assert queries.job(2).desired == "stop"
    act(pressed("cancel", "sds-0002"), asked())
    assert queries.job(2).desired == "stop"
    assert [action.name for action in actions(queries.job(2), HOST)] == ["kill"]
    act(pressed("kill", "sds-0002"), asked())
    assert queries.job(2).desired == "kill"
    assert actions(queries.job(2), HOST) == []


@pytest.mark.parametrize("do", ["", "delete", "None", "${1}<b>"])
def test_unknown_deeds_are_refused(seeded: Settings, do: str) -> None:
    said = act(pressed(do, "sds-0002"), asked())
    assert 'role="alert"' in said["value"] and "<b>" not in said["value"]


def test_a_stalled_queue_is_said(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.STALLED not in board()
    monkeypatch.setattr(scheduling, "SUPERVISOR_ALIVE_MS", -1)
    assert jobs.STALLED in board()


def test_retry_makes_a_new_run_with_the_same_config(seeded: Settings) -> None:
    said = act(pressed("retry", "sds-0004"), asked())
    new, old = queries.job(6), queries.job(4)
    assert "sds-0006" in said["value"]
    assert (new.state, new.parent, old.state) == ("queued", 4, "failed")
    assert {k: new.config[k] for k in old.config} == old.config
    act(pressed("resume", "sds-0005"), asked())
    assert queries.job(5).state == "queued"
