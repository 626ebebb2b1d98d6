"""Asking a prompt in the browser: refused beside its field, watched, compared, voted on."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from sqlalchemy import select

from backend.store import queries
from backend.store.session import reading
from backend.store.tables import Slot
from jobs.generate.transcript import read_transcript
from tests.browser.conftest import EVIL, Dashboard, warm_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_ask_two_watch_and_vote(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/playground")
    expect(page.locator("#playground-board")).to_contain_text("No answers yet")
    page.locator("#playground-field-prompt textarea").fill(EVIL)
    sides = page.locator("#playground-field-sides input")
    sides.press("Backspace")  # takes the usual model out
    sides.fill("toy, toy")
    sides.press("Enter")
    tokens = page.locator("#playground-field-max-new-tokens input")
    tokens.fill("0")
    page.locator("#playground-ask").click()
    expect(page.locator("#playground-message-max-new-tokens")).to_contain_text("1 or more")
    assert queries.jobs() == []

    tokens.fill("40")
    page.locator("#playground-field-lookup input").check()
    page.locator("#playground-ask").click()
    expect(page).to_have_url(re.compile("run=generate-0001"))
    board = page.locator("#playground-board")
    expect(board).to_contain_text("succeeded")  # without a reload
    first = read_transcript("generate-0001", 1)
    assert first.text.strip() and first.text == read_transcript("generate-0001", 2).text
    expect(page.get_by_test_id("answer-1")).to_contain_text(f"{len(first.tokens)} tokens")
    expect(page.get_by_test_id("answer-2")).to_contain_text("identical to A")
    assert EVIL in board.inner_text() and page.evaluate("document.body.dataset.x") is None

    in_vain = page.get_by_test_id("answer-1").locator(".strip s").first
    expect(in_vain).to_be_hidden()
    page.locator("#playground-vain input").check()
    expect(in_vain).to_be_visible()

    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_test_id("vote")).to_contain_text("Vote: tie")
    assert queries.job("generate-0001").tags == ["tie"]

    page.reload()  # the form holds what the answers shown were asked with
    expect(page.locator("#playground-field-prompt textarea")).to_have_value(EVIL)
    expect(page.locator("#playground-field-lookup input")).to_be_checked()


ENDLESS = "Write a very long story of a dog who walks through every town of the world."


@pytest.fixture
def two_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSCOPE_SLOTS", "2")


def test_two_ask_at_once_both_texts_grow_and_stop_frees_a_slot(
    two_slots: None, dashboard: Dashboard, warm_context: BrowserContext
) -> None:
    tabs = (warm_tab(warm_context, dashboard) for _ in range(2))
    with next(tabs) as one, next(tabs) as other:
        for page in (one, other):
            page.goto(f"{dashboard.url}/playground")
            page.locator("#playground-field-prompt textarea").fill(ENDLESS)
            page.locator("#playground-field-max-new-tokens input").fill("1000")
            page.locator("#playground-ask").click()
        for page in (one, other):
            page.wait_for_function("document.querySelector('.strip')?.textContent.length > 0")
            page.wait_for_function(
                "(n) => document.querySelector('.strip').textContent.length > n",
                arg=len(page.locator(".strip").first.inner_text()),
            )
        stopped, going = (job.run for job in reversed(queries.jobs()))
        one.get_by_test_id(f"cancel-{stopped}").click()
        one.get_by_role("dialog").get_by_role("button", name="Cancel run").click()
        expect(one.locator("#playground-board")).to_contain_text("cancelled")
        with reading() as session:
            held = [*session.scalars(select(Slot.attempt_id).where(Slot.attempt_id.is_not(None)))]
        assert held == [queries.attempts(going)[0].id]
