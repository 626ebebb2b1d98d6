"""The playground in the browser: asked, watched, gone on with, voted on, by two people at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backend.queue.votes import votes_of
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from jobs.generate.transcript import read_transcript
from tests.browser.conftest import EVIL, Dashboard, started, warm_tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
TOKEN = "a token of the host"
ENDLESS = "Write a very long story of a dog who walks through every town of the world."


def choose(page: Page, *names: str) -> None:
    """Takes the usual model out, and these in."""
    sides = page.locator("#playground-field-sides input")
    sides.press("Backspace")
    for name in names:
        sides.fill(name)
        sides.press("Enter")
    sides.press("Escape")


def ask(page: Page, text: str) -> None:
    box = page.locator("#playground-prompt textarea")
    box.fill(text)
    box.press("Enter")


def test_ask_two_go_on_and_vote(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/playground")
    expect(page.locator("#playground-board")).to_contain_text("compare up to four")
    choose(page, "toy, toy")
    page.get_by_role("button", name="Settings").click()
    tokens = page.locator("#playground-field-max-new-tokens input")
    expect(tokens).to_have_value("96")  # the fold is drawn when it first opens
    page.wait_for_timeout(500)
    tokens.fill("0")
    tokens.press("Tab")
    expect(tokens).to_have_value("0")
    ask(page, EVIL)
    expect(page.locator("#playground-message-max-new-tokens")).to_contain_text("1 or more")
    assert queries.jobs() == []

    tokens.fill("40")
    page.locator("#playground-field-lookup input").check()
    ask(page, EVIL)
    expect(page).to_have_url(re.compile("run=generate-0001"))
    expect(page.locator("#playground-prompt textarea")).to_have_value("")  # sent
    board = page.locator("#playground-board")
    expect(page.get_by_test_id("answer-2")).to_contain_text("identical to A")  # without a reload
    first = read_transcript("generate-0001", 1)
    assert first.text.strip() and first.text == read_transcript("generate-0001", 2).text
    expect(page.get_by_test_id("answer-1")).to_contain_text(f"{len(first.tokens)} tokens")
    assert EVIL in board.inner_text() and page.evaluate("document.body.dataset.x") is None

    in_vain = page.get_by_test_id("answer-1").locator(".strip s").first
    expect(in_vain).to_be_hidden()
    page.locator("#playground-vain input").check()
    expect(in_vain).to_be_visible()

    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_test_id("vote")).to_contain_text("Your vote: tie")
    assert votes_of("generate-0001") == {"local": 0}

    ask(page, "And then?")
    expect(page.locator(".turn")).to_have_count(2)
    assert queries.job("generate-0002").config["follows"] == "generate-0001"
    page.reload()  # the address is the conversation, the settings are its own
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#playground-field-lookup input")).to_be_checked()
    page.locator("#playground-new").click()
    expect(page.locator("[data-example]")).to_have_count(3)
    page.locator(".earlier").click()
    expect(page.locator(".turn")).to_have_count(2)


@pytest.fixture
def slow_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch decodes, which leaves time to look at an answer and to stop it."""
    monkeypatch.setenv("SLIMSCOPE_NATIVE", "false")


def test_two_ask_at_once_both_texts_grow_and_one_is_stopped(
    slow_answers: None, dashboard: Dashboard, warm_context: BrowserContext
) -> None:
    tabs = (warm_tab(warm_context, dashboard) for _ in range(2))
    with next(tabs) as one, next(tabs) as other:
        for page in (one, other):
            page.goto(f"{dashboard.url}/playground")
            page.get_by_role("button", name="Settings").click()
            page.locator("#playground-field-max-new-tokens input").fill("1000")
            ask(page, ENDLESS)
        for page in (one, other):
            page.wait_for_function("document.querySelector('.strip')?.textContent.length > 0")
            page.wait_for_function(
                "(n) => document.querySelector('.strip').textContent.length > n",
                arg=len(page.locator(".strip").first.inner_text()),
            )
        stopped, going = (job.run for job in reversed(queries.jobs()))
        assert {queries.job(run).state for run in (stopped, going)} == {State.RUNNING}
        one.get_by_test_id("stop").click()
        expect(one.locator("#playground-board")).to_contain_text("cancelled")
        assert queries.job(going).state == State.RUNNING
        other.get_by_test_id("stop").click()
        expect(other.locator("#playground-board")).to_contain_text("cancelled")


def test_a_guest_asks_and_votes_from_another_browser(
    warm_context: BrowserContext,
    other_context: BrowserContext,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLIMSCOPE_HOST_TOKEN", TOKEN)
    settings.cache_clear()
    with started(data_dir, os.environ, fresh=True) as shared:
        with warm_tab(warm_context, shared) as guest:
            guest.goto(f"{shared.url}/playground")
            choose(guest, "toy, toy")
            guest.locator("#playground-field-blind input").check()
            guest.locator("#playground-name").locator("input, textarea").fill(f"Ada {EVIL}"[:40])
            ask(guest, "One day")
            expect(guest.get_by_role("button", name="B is better")).to_be_visible()
            ask_owner = queries.job("generate-0001").owner
            assert ask_owner.startswith("guest-") and " Ada " in ask_owner
            guest.get_by_role("button", name="B is better").click()
            expect(guest.get_by_test_id("vote")).to_contain_text("Your vote: toy is better")
        with warm_tab(other_context, shared) as other:
            other.goto(f"{shared.url}/playground?run=generate-0001")
            other.get_by_role("button", name="Tie").click()
            expect(other.get_by_test_id("vote")).to_contain_text("All votes")
        votes = votes_of("generate-0001")
        assert len(votes) == 2 and all(voter.startswith("guest-") for voter in votes)
