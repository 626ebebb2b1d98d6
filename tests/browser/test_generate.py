"""Asking a prompt in the browser: refused beside its field, watched, compared, voted on."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from backend.store import queries
from jobs.generated import written
from tests.browser.conftest import EVIL, Dashboard

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_ask_two_watch_and_vote(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/generate")
    expect(page.locator("#generate-board")).to_contain_text("Nothing has been asked yet")
    page.locator("#generate-field-prompt textarea").fill(EVIL)
    sides = page.locator("#generate-field-sides input")
    sides.fill("toy, toy")
    sides.press("Enter")
    tokens = page.locator("#generate-field-max-new-tokens input")
    tokens.fill("0")
    page.locator("#generate-ask").click()
    expect(page.locator("#generate-message-max-new-tokens")).to_contain_text("1 or more")
    assert queries.jobs() == []

    tokens.fill("40")
    page.locator("#generate-ask").click()
    expect(page).to_have_url(re.compile("run=generate-0001"))
    board = page.locator("#generate-board")
    expect(board).to_contain_text("succeeded")  # without a reload
    first = written("generate-0001", 1)
    assert first.text.strip() and first.text == written("generate-0001", 2).text
    expect(page.get_by_test_id("answer-1")).to_contain_text(f"{len(first.tokens)} tokens")
    expect(page.get_by_test_id("answer-2")).to_contain_text("the same text as A")
    assert EVIL in board.inner_text() and page.evaluate("document.body.dataset.x") is None

    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_test_id("vote")).to_contain_text("Found equal")
    assert queries.job("generate-0001").tags == ["tie"]
