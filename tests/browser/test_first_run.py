"""What this product is for, done by hand in a browser: launch, watch, lose the process, come back,
look at the weights."""

import os
import re
import signal
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, expect

from backend.queue.service import wake_supervisor
from backend.store import queries, tensors
from backend.store.states import State
from jobs.submit import submit
from tests.browser.conftest import EVIL, HOST, PATIENCE_MS, Dashboard, started
from tests.waiting import until

TENSOR = "model.layers.0.self_attn.q_proj.weight"


def launch_on_toy(page: Page, url: str, steps: int, name: str = "") -> None:
    """Fills the form for a run on the toy model that takes some seconds, and queues it."""
    page.goto(f"{url}/new-run")
    page.get_by_label("Model", exact=True).select_option("toy")
    page.locator("#new-name").fill(name)
    page.get_by_text("All settings").click()
    for field, value in (
        ("segments", 8),
        ("windows", 4),
        ("adjust_steps", steps),
        ("redense_steps", 20),
    ):
        page.locator(f"#field-{field}").fill(str(value))
    expect(page.locator("#new-plan")).to_contain_text(f"--adjust-steps {steps}")
    page.get_by_role("button", name="Add to queue").click()
    expect(page.locator("#new-said")).to_contain_text("was added")


def wait_until(run: int, *states: State, stage: str = "") -> State:
    until(lambda: (job := queries.job(run)).state in states and stage in job.stage, 500)
    return State(queries.job(run).state)


def test_launch_watch_kill_resume_and_look_at_the_weights(page: Page, dashboard: Dashboard) -> None:
    launch_on_toy(page, dashboard.url, steps=200, name=EVIL)
    wait_until(1, State.RUNNING, stage="Weight adjustment")
    ref = queries.attempts(1)[0].engine_ref
    os.kill(ref["pid"], signal.SIGSTOP)  # else it would be over before it is looked at
    page.goto(f"{dashboard.url}/run?id=sds-0001")
    expect(page.locator("#run-head")).to_contain_text("running")
    expect(page.locator("#frame-badge")).to_contain_text(re.compile(r"\d+\s%"))

    os.kill(ref["pid"], signal.SIGKILL)
    assert wait_until(1, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    first, second = queries.attempts(1)
    assert first.outcome is None and second.outcome == "succeeded"
    expect(page.locator("#run-head")).to_contain_text("succeeded")  # without a reload
    expect(page.locator("#run-figures")).to_contain_text("Second pruning (SDS)")
    assert page.evaluate("document.body.dataset.x") is None  # text stayed text
    assert EVIL in page.locator("body").inner_text()

    page.goto(f"{dashboard.url}/weights?run=sds-0001&tensor={TENSOR}")
    zeros_on_screen_are_those_stored(page)


def zeros_on_screen_are_those_stored(page: Page) -> None:
    table = page.locator("#weights-table")
    table.locator("summary").click()
    expect(table).to_contain_text("First pruning")
    for snapshot in tensors.tensor_snapshots(1, TENSOR):
        counted = snapshot.counts.sum() + snapshot.zeros + snapshot.below + snapshot.above
        assert counted == snapshot.n
        if snapshot.stage == "first":
            row = table.locator("tr", has=page.get_by_role("rowheader", name="Exact zeros, %"))
            expect(row).to_contain_text(f"{100 * snapshot.zeros / snapshot.n:.4g}")


def test_killing_the_dashboard_stops_no_run_and_its_page_goes_on_with_the_next(
    warm_context: BrowserContext, dashboard: Dashboard
) -> None:
    page = warm_context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    submit("count", {"steps": 3000}, HOST)
    wake_supervisor()
    wait_until(1, State.RUNNING)
    page.goto(f"{dashboard.url}/run?id=count-0001")
    status, badge = page.locator("#frame-status-line"), page.locator("#frame-badge")
    bar = page.locator("#run-head progress")
    expect(badge).to_contain_text("count-0001")
    bar.wait_for()
    dashboard.process.kill()
    dashboard.process.join()
    before = queries.job(1).done
    expect(status).to_contain_text("No answer from the server")
    until(lambda: queries.job(1).done > before)
    shown = bar.get_attribute("value")
    ref = queries.attempts(1)[0].engine_ref
    os.kill(ref["pid"], signal.SIGSTOP)  # else it may end before the next dashboard is there
    with started(dashboard.data, os.environ, port=urlsplit(dashboard.url).port or 0):
        os.kill(ref["pid"], signal.SIGCONT)
        expect(status).not_to_contain_text("No answer")
        expect(badge).to_contain_text("count-0001")
        expect(bar).not_to_have_attribute("value", shown or "")  # without a reload
    page.close()
