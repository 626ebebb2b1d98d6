"""The queue as two people see it: order, cancelling, a failure, and a curve that stays zoomed while
it grows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from backend.queue import service
from backend.queue.service import Actor
from backend.settings import settings
from backend.store import queries
from backend.store.session import engine_for
from backend.store.states import ACTIVE, TERMINAL, State
from jobs.kinds import kinds
from jobs.submit import submit
from tests.browser.conftest import PLUGIN, Dashboard, opened, started, tab

expect.set_options(timeout=60_000)
HOST = Actor("mira", "host")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
RANGE = "document.querySelector('#run-curve .js-plotly-plot')._fullLayout.xaxis.range"


@pytest.fixture(scope="module")
def shared_queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard that knows a kind of run that only counts."""
    data = tmp_path_factory.mktemp("queue")
    here = {"SLIMSCOPE_DATA_DIR": str(data), "SLIMSCOPE_PLUGINS": PLUGIN}
    with started(data, os.environ | here) as shown:
        yield shown


@pytest.fixture
def queue(shared_queue: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """The same; the test reads it and adds to it."""
    monkeypatch.setenv("SLIMSCOPE_DATA_DIR", str(shared_queue.data))
    monkeypatch.setenv("SLIMSCOPE_PLUGINS", PLUGIN)
    settings.cache_clear()
    kinds.cache_clear()
    yield shared_queue
    for job in queries.jobs(ACTIVE):
        service.cancel(job.run, HOST)
        until(job.run, *TERMINAL)
    engine_for.cache_clear()
    settings.cache_clear()
    kinds.cache_clear()


@pytest.fixture
def page(browser: Browser, queue: Dashboard) -> Iterator[Page]:
    with tab(browser, queue) as page:
        yield page


def counted(**values: object) -> str:
    """Queues a run that counts."""
    return submit("count", values, HOST).run


def until(run: str, *states: State) -> State:
    deadline = time.monotonic() + 100
    while (state := State(queries.job(run).state)) not in states:
        assert time.monotonic() < deadline, f"{run} is still {state}"
        time.sleep(0.1)
    return state


def order(page: Page) -> list[str]:
    """The runs of the table of jobs, from top to bottom."""
    return page.locator("#jobs-board tbody a.mono").all_inner_texts()


def test_what_one_person_does_to_the_queue_another_sees(
    page: Page, queue: Dashboard, browser: Browser
) -> None:
    first, second, third = (counted(steps=2000) for _ in range(3))
    until(first, State.RUNNING)
    opened(page, f"{queue.url}/jobs")
    with tab(browser, queue) as other:
        opened(other, f"{queue.url}/jobs")
        expect(other.locator("#jobs-board tbody tr")).to_have_count(3)
        assert order(other) == [first, second, third]
        page.get_by_test_id(f"next-{third}").click()
        expect(other.locator("#jobs-board tbody tr").nth(1)).to_contain_text(third)
        assert order(other) == [first, third, second]
        page.get_by_test_id(f"cancel-{second}").click()
        page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
        assert queries.job(second).state == State.QUEUED  # nothing is done without a yes
        page.get_by_test_id(f"cancel-{second}").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel run").click()
        expect(other.locator("#jobs-board")).not_to_contain_text(second)
        process = psutil.Process((queries.attempts(first)[0].engine_ref or {})["pid"])
        for run in (third, first):
            page.get_by_test_id(f"cancel-{run}").click()
            page.get_by_role("dialog").get_by_role("button", name="Cancel run").click()
            assert until(run, State.CANCELLED) == State.CANCELLED
        expect(other.locator("#jobs-board")).to_contain_text("Nothing runs and nothing waits.")
    process.wait(10)
    assert not queries.curves(first).empty  # what was measured is kept


def test_a_failed_run_says_why_and_is_repeated_beside_the_old_one(
    page: Page, queue: Dashboard
) -> None:
    run = counted(fails_at=1)
    until(run, State.FAILED)
    opened(page, f"{queue.url}/run?id={run}")
    problem = page.locator("#run-head .problem")
    expect(problem).to_contain_text("The count failed. It was told to. Resume it.")
    page.get_by_test_id(f"retry-{run}").click()
    expect(page.locator("#run-said")).to_contain_text("is queued")
    (repeated,) = queries.replays(run)
    until(repeated.run, State.FAILED)
    new, old = queries.job(repeated.run), queries.job(run)
    assert new.config == old.config and new.parent == old.id and old.state == State.FAILED
    page.get_by_test_id(f"resume-{run}").click()  # it fails only in its first attempt
    until(run, State.SUCCEEDED)
    expect(page.locator("#run-head")).to_contain_text("succeeded")


def test_a_curve_stays_zoomed_while_it_grows(page: Page, queue: Dashboard) -> None:
    run = counted(steps=600, pause=0.1)
    until(run, State.RUNNING)
    opened(page, f"{queue.url}/run?id={run}&tab=curves")
    drag = page.locator("#run-curve .nsewdrag").first
    drag.wait_for()
    page.wait_for_function(f"{RANGE}[1] > 8")
    box = drag.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=5)
    page.mouse.up()
    zoomed = page.evaluate(RANGE)
    points = "document.querySelector('#run-curve .js-plotly-plot').data[0].x.length"
    before = page.evaluate(points)
    page.wait_for_function(f"{points} > {before + 5}")  # twice drawn anew, or more
    assert page.evaluate(RANGE) == zoomed
    drag.dblclick()
    page.wait_for_function(f"{RANGE}[1] > {zoomed[1]}")


def test_two_browsers_and_a_reload_show_the_same_run(
    page: Page, queue: Dashboard, browser: Browser
) -> None:
    run = counted(steps=400)
    until(run, State.RUNNING)
    opened(page, f"{queue.url}/run?id={run}&tab=log")
    page.close()  # nobody looks
    done = queries.job(run).done
    deadline = time.monotonic() + 30
    while queries.job(run).done <= done and time.monotonic() < deadline:
        time.sleep(0.1)
    assert queries.job(run).done > done
    shown = []
    for _ in range(2):
        with tab(browser, queue) as other:
            opened(other, f"{queue.url}/run?id={run}&tab=log")
            expect(other.locator("#run-head")).to_contain_text("running")
            expect(other.locator("#frame-status-line")).to_contain_text(run)
            other.reload()
            expect(other.locator("#run-head")).to_contain_text("running")
            shown.append(other.get_by_role("tab", selected=True).inner_text())
    assert shown == ["Log", "Log"]
