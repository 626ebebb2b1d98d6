"""Guests in the playground: allowed settings and rate limits."""

from pathlib import Path

import pytest

from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    RateLimitError,
    SlimscopeError,
)
from backend.queue import conversations, gate, permissions
from backend.queue.actor import ALIAS_LETTERS, Actor, guest_name, with_alias
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from jobs import chat
from jobs.chat import ask, ask_again, chat_request
from jobs.submit import submit
from tests.conftest import Given
from tests.gates import nothing_asked
from tests.queue.conftest import HOST
from tests.refusals import refusal

ADA, BOB, EVE = (Actor(guest_name(f"aa{n}", "1234"), "guest", f"10.0.0.{n}") for n in range(3))
SHORT = {"prompt": "One day", "sides": "toy", "max_new_tokens": 8}


@pytest.fixture(autouse=True)
def playground(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_asked(monkeypatch)


def limit(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    for name, value in values.items():
        monkeypatch.setattr(permissions, name, value)


def asks(who: Actor, **values: object) -> int:
    return ask({**SHORT, **values}, False, who)


def answered(number: int, end: str = "limit", text: str = "there was") -> int:
    turn = conversations.turn(number)
    with writing() as session:
        for side in turn.unanswered:
            rows = [{"ms": 1, "tokens": [[text, 0]], "rejected": []}, {"end": end, "rest": ""}]
            conversations.save_answer(turn.prompt, side, text, rows, session)
    return number


def test_guests_may_ask_by_default_but_not_queue_runs() -> None:
    assert conversations.turn(asks(ADA)).prompt.author == ADA.name and queries.jobs() == []
    with pytest.raises(ForbiddenError, match="read-only"):
        submit("count", {"steps": 1}, ADA)
    with pytest.raises(ForbiddenError, match="read-only"):
        asks(Actor("guest"))  # one without a name


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"sides": " , "}, "sides"),
        ({"sides": "toy,toy,toy,toy,toy"}, "sides"),
        ({"sides": "amphista-0999"}, "sides"),
        ({"sides": "sds-0999"}, "sides"),
        ({"sides": "toy, nobody/nothing"}, "sides"),
        ({"sides": "/etc"}, "sides"),
        ({"max_new_tokens": 4000}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
    ],
)
def test_invalid_settings_are_refused_with_their_field(
    values: dict[str, object], field: str
) -> None:
    with refusal(field):
        asks(HOST, **values)
    assert conversations.newest_conversations(9) == []


def test_models_larger_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "memory_available", lambda: 10**6)
    with pytest.raises(SlimscopeError, match="memory"):
        asks(HOST)


def test_the_host_can_disable_guest_prompts(given: Given) -> None:
    given(GUEST_ANSWERS="0")
    with pytest.raises(ForbiddenError, match="read-only"):
        asks(ADA)
    assert permissions.may_not_ask(ADA) and not settings().names_guests
    assert conversations.newest_conversations(9) == []


def test_guest_prompts_and_answers_are_limited_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, GUEST_LETTERS=100, GUEST_TOKENS=16)
    with pytest.raises(ForbiddenError, match="limit for guests is 16"):
        asks(ADA, max_new_tokens=17)
    with pytest.raises(ForbiddenError, match="guests may send 100"):
        asks(ADA, prompt="x" * 60, system="y" * 41)
    first = answered(asks(ADA, max_new_tokens=16, prompt="x" * 60, system="y" * 20))
    with pytest.raises(ForbiddenError, match="guests may send 100"):  # with what was said before
        ask({**SHORT, "prompt": "x" * 32}, False, ADA, first)
    asks(HOST, max_new_tokens=60, prompt="x" * 200)


def test_guests_have_a_rate_limit_and_refused_requests_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, GUEST_TOKENS=16)
    monkeypatch.setattr(gate.answers, "limit", 2)
    monkeypatch.setattr(gate.changes, "limit", 3)
    for _ in range(5):
        with pytest.raises(ForbiddenError, match="limit for guests"):
            asks(ADA, max_new_tokens=17)
        with pytest.raises(ConfigError):
            asks(ADA, sides="no/such-model-here", prompt="")
    for _ in range(2):
        asks(ADA)
    with pytest.raises(RateLimitError, match="2 requests per minute"):
        asks(ADA)
    asks(BOB)


def test_guests_behind_one_address_have_separate_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate.answers, "limit", 1)
    monkeypatch.setattr(gate, "ADDRESS_FACTOR", 8)
    people = [Actor(guest_name("school", f"{n}"), "guest", "10.0.0.1") for n in range(9)]
    for person in people[:8]:
        asks(person)
    with pytest.raises(RateLimitError, match="1 requests per minute"):
        asks(people[0])
    with pytest.raises(RateLimitError, match="8 requests per minute"):
        asks(people[8])  # as if somebody dropped the cookie again and again
    asks(EVE)


# conversations ------------------------------------------------------------------------------------


def test_a_prompt_continues_the_conversation_of_each_side() -> None:
    two = {**SHORT, "sides": "toy, toy", "system": "Be short.", "stop": "zebra|ox"}
    first = ask(two, False, HOST)
    with pytest.raises(ConflictError, match="still being answered"):
        ask(two, False, HOST, first)
    second = ask({**two, "prompt": "And then?"}, False, HOST, answered(first))
    turns = conversations.turns_to(second)
    body = chat_request(turns, 2)
    assert [m.role for m in body.messages] == ["system", "user", "assistant", "user"]
    assert body.messages[2].content == "there was" and body.messages[3].content == "And then?"
    assert body.max_tokens == 8 and body.stops == ("zebra", "ox") and body.details
    answered(second, "error")  # the next takes its place
    third = conversations.turn(ask(two, False, HOST, second))
    assert third.prompt.parent == first and third.conversation.id == turns[0].conversation.id
    for values, blind in ((SHORT, False), (two, True)):
        begun = conversations.turn(ask(values, blind, HOST, first))
        assert begun.prompt.parent is None and begun.conversation.id != turns[0].conversation.id


def test_repeating_a_prompt_changes_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    number = answered(asks(HOST))
    with pytest.raises(ConflictError, match="would be the same"):
        ask_again(number, HOST)
    sampled = answered(asks(HOST, temperature=0.7, seed=4))
    again = conversations.turn(ask_again(sampled, HOST)).prompt
    assert again.settings == conversations.turn(sampled).prompt.settings | {"seed": 5}
    assert again.text == "One day" and again.parent is None


def test_a_guest_alias_follows_the_guest_name() -> None:
    named = with_alias(ADA, f"Ada\n\u202eLovelace\0 {'x' * 60}")
    assert named.alias.startswith("Ada Lovelace xxx") and len(named.alias) == ALIAS_LETTERS
    author = conversations.turn(asks(named)).prompt.author
    assert author == f"{ADA.name} {named.alias}"
    assert not permissions.may_not_cancel(ADA, author)  # whatever they call themselves now
    assert permissions.may_not_cancel(with_alias(BOB, ADA.name), author)
    assert with_alias(HOST, "Ada") == HOST and with_alias(Actor("guest"), "Ada").alias == ""
