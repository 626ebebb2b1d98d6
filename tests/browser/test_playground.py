"""The playground in the browser: asked, watched, gone on with, voted on, by two people at once."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from backend.queue import conversations
from jobs.serving.transcript import parse_transcript
from tests.browser.conftest import EVIL, Dashboard, warm_tab

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


def newest() -> int:
    """The number of the newest prompt."""
    return conversations.newest_conversations(1)[0].newest.id


def stored(number: int, side: int) -> list[object]:
    return conversations.turn(number).answers[side].transcript


@pytest.fixture
def page(warm_context: BrowserContext, workshop: Dashboard) -> Iterator[Page]:
    with warm_tab(warm_context, workshop.url) as page:
        yield page


def test_ask_two_go_on_and_vote(page: Page, workshop: Dashboard) -> None:
    before = len(conversations.newest_conversations(99))
    page.goto(f"{workshop.url}/playground")
    expect(page.locator("#playground-board")).to_contain_text("compare up to four")
    choose(page, "toy, toy")
    page.get_by_role("button", name="Settings").click()
    tokens = page.locator("#playground-field-max-new-tokens input")
    expect(tokens).to_have_value("96")  # the fold is drawn when it first opens
    tokens.fill("0")
    tokens.press("Tab")
    expect(tokens).to_have_value("0")
    ask(page, EVIL)
    expect(page.locator("#playground-message-max-new-tokens")).to_contain_text("1 or more")
    assert len(conversations.newest_conversations(99)) == before

    tokens.fill("40")
    page.locator("#playground-field-lookup input").check()
    ask(page, EVIL)
    expect(page).to_have_url(re.compile("chat="))
    asked = newest()
    expect(page.locator("#playground-prompt textarea")).to_have_value("")  # sent
    board = page.locator("#playground-board")
    # Without a reload. PyTorch, of which the workshop decodes in 16 bits, rounds as the batch is.
    compared = re.compile("identical to A|first difference from A")
    expect(page.get_by_test_id("answer-2")).to_contain_text(compared)
    first, second = (parse_transcript(stored(asked, side)) for side in (1, 2))
    assert first.text.strip() and second.text.strip()
    expect(page.get_by_test_id("answer-1")).to_contain_text(f"{len(first.tokens)} tokens")
    assert EVIL in board.inner_text() and page.evaluate("document.body.dataset.x") is None

    page.evaluate(  # a draft token in vain; whether any is drafted depends on the machine
        "document.querySelector('.strip').append(Object.assign(document.createElement('s'), "
        "{ textContent: 'vain' }))"
    )
    in_vain = page.get_by_test_id("answer-1").locator(".strip s").last
    expect(in_vain).to_be_hidden()
    page.locator("#playground-vain input").check()
    expect(in_vain).to_be_visible()

    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_test_id("vote")).to_contain_text("Your vote: tie")
    assert conversations.turn(asked).votes == {"local": 0}
    page.get_by_role("button", name="Votes").click()
    votes = page.locator("#playground-votes")
    expect(votes.locator("dl > div", has_text="Tie")).to_contain_text("1")
    page.wait_for_function("document.querySelector('#playground-votes .qr').naturalWidth > 0")

    ask(page, "And then?")
    expect(page.locator(".turn")).to_have_count(2)
    assert conversations.turn(newest()).prompt.parent == asked
    page.reload()  # the address is the conversation, the settings are its own
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#playground-field-lookup input")).to_be_checked()
    page.locator("#playground-new").click()
    expect(page.locator("[data-example]")).to_have_count(3)
    page.locator(".earlier").first.click()
    expect(page.locator(".turn")).to_have_count(2)


def test_two_ask_at_once_both_texts_grow_and_one_is_stopped(
    workshop: Dashboard, warm_context: BrowserContext
) -> None:
    tabs = (warm_tab(warm_context, workshop.url) for _ in range(2))
    with next(tabs) as one, next(tabs) as other:
        for page in (one, other):
            page.goto(f"{workshop.url}/playground")
            page.get_by_role("button", name="Settings").click()
            page.locator("#playground-field-max-new-tokens input").fill("1000")
            ask(page, ENDLESS)
        for page in (one, other):
            page.wait_for_function("document.querySelector('.strip')?.textContent.length > 0")
            page.wait_for_function(
                "(n) => document.querySelector('.strip').textContent.length > n",
                arg=len(page.locator(".strip").first.inner_text()),
            )
        stopped, going = (int(page.url.partition("chat=")[2]) for page in (one, other))
        one.get_by_test_id("stop").click()
        expect(one.locator("#playground-board")).to_contain_text("stopped")
        assert stored(stopped, 1)[-1] == {"end": "cancelled", "rest": ""}
        assert len(parse_transcript(stored(stopped, 1)).tokens) > 1
        assert conversations.turn(going).unanswered == [1]
        other.get_by_test_id("stop").click()
        expect(other.locator("#playground-board")).to_contain_text("stopped")
