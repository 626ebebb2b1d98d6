"""The queue on top of the page Runs, on a data folder with a run in every state."""

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
from tests.ui.lab import GUEST, asked, job, point, pressed, store
from ui.pages.runs import page as runs
from ui.pages.runs.thumbnails import live_curves
from ui.runs.actions import actions


def queue(who: tuple[str, str] = ("127.0.0.1", "localhost:7860")) -> str:
    return str(runs.draw(asked(who))["queue"]["value"])


def said(do: str, run: str, text: str = "", who: tuple[str, str] | None = None) -> str:
    request = asked(who) if who else asked()
    return str(runs.act(pressed(do, run, text), request)["message"]["value"])


def test_active_runs_stand_in_queue_order_with_progress_and_start(seeded: Settings) -> None:
    html = queue()
    assert re.findall(r'data-testid="(?:live|waiting)-([^"]+)', html) == ["sds-0002", "sds-0003"]
    assert "4–13\u00a0min left" in html  # by its own estimate, and by its mean pace of 18 minutes
    assert re.search(r"starts in about [45]\u00a0min", html)  # when the one before has ended
    assert 'data-testid="cancel-sds-0003"' in html and 'data-order="after"' in html


def test_an_idle_queue_takes_no_room_and_failed_runs_are_one_click_away(seeded: Settings) -> None:
    assert "list-failed" in str(runs.draw(asked())["tools"])
    with writing() as session:
        session.execute(update(Job).where(Job.state.in_(ACTIVE)).values(state=State.CANCELLED))
    assert runs.draw(asked())["queue"] == {"value": "", "visible": False, "__type__": "update"}


def test_live_runs_of_one_metric_are_drawn_over_each_other(tables: Settings) -> None:
    live = {"state": "running", "finished_at": None}
    store(job(1, **live), job(2, **live), job(3, **live))
    for run, last in ((1, 8), (2, 4)):
        store(*(point(run, "loss", step, 5.0 - step / run) for step in range(last + 1)))
    (chart,) = live_curves(queries.jobs(ACTIVE))
    assert {run for run, *_ in chart["lines"]} == {"sds-0001", "sds-0002"} and chart["last"] == 8
    store(point(3, "odd", 0, 1.0), *(point(3, "odd", n, float("inf")) for n in (1, 2, 3)))
    assert all(
        "nan" not in path for c in live_curves(queries.jobs(ACTIVE)) for *_, path, _ in c["lines"]
    )
    store(*(point(3, "error", block, 0.02, "block") for block in range(5)))
    (blocks,) = (c for c in live_curves(queries.jobs(ACTIVE)) if c["axis"] == "block")
    ((_, value, path, _),) = blocks["lines"]
    assert (blocks["low"], value, path.count("M")) == ("0.00", "2.00", 5)  # from zero, no line
    ends = {run: float(re.split("[ML ]", path)[-2]) for run, _, path, _ in chart["lines"]}
    assert ends["sds-0002"] == pytest.approx(ends["sds-0001"] / 2, abs=1)  # one axis of steps


def test_a_host_moves_a_run_and_a_guest_cannot(seeded: Settings) -> None:
    waiting = {"state": "queued", "started_at": None, "finished_at": None}
    store(job(6, **waiting), job(7, **waiting))
    first = [run.run for run in scheduling.queued()]
    assert "may not" in said("after", first[0], first[-1], GUEST)
    assert "data-order" not in queue(GUEST) and 'class="handle"' not in queue(GUEST)
    assert "was moved" in said("after", first[0], first[-1])
    moved = [*first[1:], first[0]]
    assert [run.run for run in scheduling.queued()] == moved
    said("after", moved[-1])
    assert [run.run for run in scheduling.queued()] == first
    for run, above in (
        (first[0], first[0]),
        (first[0], "sds-0001"),
        ("sds-0001", first[0]),
        (first[0], "<b>x</b>"),
        (first[0], "9" * 5000),
        ("", first[0]),
    ):
        html = said("after", run, above)
        assert 'role="alert"' in html and "<b>" not in html
    assert [run.run for run in scheduling.queued()] == first


def test_guests_see_the_buttons_with_the_reason_and_are_refused(seeded: Settings) -> None:
    button = re.search(r'<button[^>]*data-testid="cancel-sds-0003"[^>]*>', queue(GUEST))
    assert button and " disabled " in button[0] and permissions.READ_ONLY in button[0]
    for do in ("cancel", "kill", "next", "resume", "retry"):
        assert "may not" in said(do, "sds-0004", who=GUEST)
    assert len(queries.jobs()) == 5


def test_cancelling_twice_from_a_page_that_is_behind_kills_nothing(seeded: Settings) -> None:
    assert "was asked to stop at the next safe point" in said("cancel", "sds-0002")
    assert queries.job(2).desired == "stop"
    said("cancel", "sds-0002")
    assert queries.job(2).desired == "stop"
    assert [action.name for action in actions(queries.job(2), HOST)] == ["kill"]
    said("kill", "sds-0002")
    assert queries.job(2).desired == "kill"
    assert actions(queries.job(2), HOST) == []


@pytest.mark.parametrize("do", ["", "delete", "None", "${1}<b>"])
def test_unknown_deeds_are_refused(seeded: Settings, do: str) -> None:
    html = said(do, "sds-0002")
    assert 'role="alert"' in html and "<b>" not in html


def test_a_stalled_queue_is_said(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'class="warn"' not in queue()
    monkeypatch.setattr(scheduling, "SUPERVISOR_ALIVE_MS", -1)
    assert 'class="warn"' in queue()
