"""The queue as several people see it: order, cancelling, a failure, curves that stay as they were
left while they grow."""

from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backend.errors import ConflictError
from backend.queue import scheduling, service
from backend.store import frames, queries
from backend.store.states import ACTIVE, TERMINAL, State
from jobs.submit import submit
from tests.browser.conftest import HOST, Dashboard, opened, patient, warm_tab
from tests.waiting import until as wait_for

RUNS = "#runs-queue :is(article, li)"


@pytest.fixture
def queue(workshop: Dashboard) -> Iterator[Dashboard]:
    yield workshop
    for job in queries.jobs(ACTIVE):
        with suppress(ConflictError):  # it has ended
            service.cancel([job.run], HOST)
        until(job.run, *TERMINAL)


@pytest.fixture
def page(warm_context: BrowserContext, queue: Dashboard) -> Iterator[Page]:
    with warm_tab(warm_context, queue.url) as page:
        yield page


def counted(**values: object) -> str:
    """Queues a run that counts."""
    return submit("count", values, HOST).run


def until(run: str, *states: State) -> State:
    wait_for(lambda: queries.job(run).state in states, 100)
    return State(queries.job(run).state)


def order(page: Page) -> list[str]:
    """The runs of the queue, from top to bottom."""
    return page.locator(RUNS).locator("a.mono").all_inner_texts()


def test_what_one_person_does_to_the_queue_another_sees(
    page: Page, queue: Dashboard, other_context: BrowserContext
) -> None:
    first, second, third = (counted(steps=2000) for _ in range(3))
    until(first, State.RUNNING)
    opened(page, f"{queue.url}/runs")
    with warm_tab(other_context, queue.url) as other:
        opened(other, f"{queue.url}/runs")
        rows = other.locator(RUNS)
        expect(rows).to_have_count(3)
        assert order(other) == [first, second, third]
        soon = 1000 * patient(5)
        page.get_by_test_id(f"next-{third}").click()
        expect(rows.nth(1)).to_contain_text(third, timeout=soon)
        assert order(other) == [first, third, second]
        page.get_by_test_id(f"move-{third}").press("ArrowDown")
        expect(rows.nth(2)).to_contain_text(third, timeout=soon)
        source, target = (page.get_by_test_id(f"move-{run}") for run in (third, second))
        source.drag_to(target, target_position={"x": 4, "y": 1})
        expect(rows.nth(1)).to_contain_text(third, timeout=soon)
        assert order(other) == [first, third, second]
        page.get_by_test_id(f"cancel-{second}").click()
        page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
        assert queries.job(second).state == State.QUEUED  # nothing is done without a yes
        page.get_by_test_id(f"cancel-{second}").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel run").click()
        expect(rows).to_have_count(2)
        process = psutil.Process((queries.attempts(first)[0].engine_ref or {})["pid"])
        for run in (third, first):
            page.get_by_test_id(f"cancel-{run}").click()
            page.get_by_role("dialog").get_by_role("button", name="Cancel run").click()
            assert until(run, State.CANCELLED) == State.CANCELLED
        expect(rows).to_have_count(0)
    process.wait(10)
    job = queries.job(first)
    assert (job.finished_at or 0) - (job.desired_at or 0) < 1000 * patient(10)
    types = [e.type for e in queries.events(first) if e.type != "measured"]  # of disk space
    assert types[-2:] == ["asked to stop", "cancelled"]
    assert not frames.curves(first).empty  # what was measured is kept


def test_a_launched_run_has_place_start_and_its_config(page: Page, queue: Dashboard) -> None:
    busy = counted(steps=3000)
    until(busy, State.RUNNING)
    wait_for(lambda: queries.job(busy).eta_s is not None, 100)  # learned from its first steps
    opened(page, f"{queue.url}/new-run?kind=sds&model=smollm2-135m")
    said, add = page.locator("#new-said"), page.get_by_role("button", name="Add to queue")
    for place in (1, 2):
        add.click()
        expect(said).to_contain_text(f"joined the queue as number {place}.")
    first, second = scheduling.queued()
    before = second.config
    page.get_by_text("All settings").click()
    page.locator("#field-segments").fill("5")
    expect(page.locator("#new-plan")).to_contain_text("--segments 5")
    assert queries.job(second.run).config == before != {**before, "segments": 5}
    expect(said).to_be_empty()  # it was about the config before
    add.click()
    said.get_by_role("link", name="Open the queue").click()
    rows = page.locator(RUNS)
    expect(rows).to_have_count(4)
    for place, job in ((1, first), (2, second)):
        row = rows.filter(has_text=job.run)
        expect(row.locator("> b")).to_have_text(str(place))
        expect(row).to_contain_text("starts")


def test_a_failed_run_says_why_and_is_repeated(page: Page, queue: Dashboard) -> None:
    run = counted(fails_at=1)
    until(run, State.FAILED)
    opened(page, f"{queue.url}/run?id={run}")
    problem = page.locator("#run-head .problem")
    expect(problem).to_contain_text("The count failed. It was told to. Resume it.")
    page.get_by_role("tab", name="Log").click()
    last = "backend.errors.ComputeError: The count failed. It was told to. Resume it."
    expect(page.locator("#run-log pre")).to_contain_text(last)
    page.get_by_test_id(f"retry-{run}").click()
    expect(page.locator("#run-said")).to_contain_text("is queued")
    (repeated,) = queries.reproductions(run)
    until(repeated.run, State.FAILED)
    new, old = queries.job(repeated.run), queries.job(run)
    assert new.config == old.config and new.parent == old.id and old.state == State.FAILED
    page.get_by_test_id(f"resume-{run}").click()  # it fails only in its first attempt
    until(run, State.SUCCEEDED)
    expect(page.locator("#run-head")).to_contain_text("succeeded")


def test_what_is_zoomed_and_hidden_stays_so_while_a_chart_grows(
    page: Page, queue: Dashboard
) -> None:
    short, long = counted(steps=4, pause=0), counted(steps=900, pause=0.05)
    until(long, State.RUNNING)
    opened(page, f"{queue.url}/compare?ids={short},{long}&curve=count")
    chart = "document.querySelector('#compare-lines .js-plotly-plot')"
    page.wait_for_function(f"{chart}?._fullData?.length === 2")
    page.locator("#compare-lines .legendtoggle").first.click()
    hidden = f"{chart}._fullData[0].visible === 'legendonly'"
    page.wait_for_function(hidden)
    drag = page.locator("#compare-lines .nsewdrag").first
    x_range = f"{chart}._fullLayout.xaxis.range"
    box = drag.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=5)
    page.mouse.up()
    zoomed, points = page.evaluate(x_range), f"{chart}.data[1].x.length"
    before = page.evaluate(points)
    page.wait_for_function(f"{points} > {before + 5}")
    assert page.evaluate(x_range) == zoomed and page.evaluate(hidden)
    drag.dblclick()
    page.wait_for_function(f"{x_range}[1] > {zoomed[1]}")
