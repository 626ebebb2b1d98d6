"""Guests in the playground: allowed settings and rate limits. Transcripts of answers: with and
without a drafter, sampled, and as JSON rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from backend.decoding.limits import LOOKUP_HEAD
from backend.errors import (
    ConfigError,
    ConflictError,
    ForbiddenError,
    RateLimitError,
    SlimscopeError,
)
from backend.models.loading import load
from backend.queue import conversations, gate, permissions
from backend.queue.actor import ALIAS_LETTERS, Actor, guest_name, with_alias
from backend.queue.artifacts import run_folder
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from jobs.chat import ask, ask_again, chat_request
from jobs.fields.drafters import parse_sides
from jobs.serving.transcript import (
    MIN_TIMED_TOKENS,
    Transcript,
    TranscriptStep,
    first_difference,
    parse_transcript,
)
from jobs.submit import submit
from tests.conftest import Given
from tests.decoding.test_engine import plain
from tests.drafters.toys import END, base, toy_prompts
from tests.gates import nothing_asked
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.jobs.serving.answers import answer
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
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: 10**6)
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


def test_votes_of_guests_need_a_cookie_and_an_address_has_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversations, "ADDRESS_FACTOR", 2)
    number = answered(asks(HOST, sides="toy, toy"))
    people = [Actor(guest_name("aa0", f"{n}"), "guest", "10.0.0.1") for n in range(3)]
    with pytest.raises(ForbiddenError, match="cookie"):
        conversations.cast(number, 1, True, replace(people[0], is_new=True))
    for who in people[:2]:
        conversations.cast(number, 1, True, who)
    with pytest.raises(ForbiddenError, match="2 visitors at your network address"):
        conversations.cast(number, 2, True, people[2])
    conversations.cast(number, 2, True, BOB)  # at another address
    assert [*conversations.turn(number).votes.values()] == [1, 1, 2]


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


PROMPT = load("toy").tokenizer.decode(toy_prompts()[0], skip_special_tokens=True)
SMALL = {"prompt": PROMPT, "max_new_tokens": 24, "precision": "float32", "nodes": 4}


def test_a_drafter_does_not_change_the_text(queue: Path) -> None:
    run, longer = trained().run, {**SMALL, "max_new_tokens": 48}
    tokenizer = load("toy").tokenizer
    expected = plain(base(), tokenizer(PROMPT).input_ids, 48, [END])
    alone, drafted = answer("toy", **longer), answer(run, **longer)
    assert alone.text == drafted.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(alone.tokens) == len(expected) and {head for _, head in alone.tokens} == {0}
    assert alone.accepted == 1.0 and drafted.accepted is not None and drafted.accepted >= 1.0
    assert alone.speed and drafted.speed and alone.end in ("limit", "end")


def test_a_damaged_drafter_is_reported(queue: Path) -> None:
    run = trained().run
    (run_folder(run) / "drafter" / "drafter.safetensors").write_bytes(b"damaged")
    with pytest.raises(SlimscopeError, match="There is no drafter"):
        answer(run, **SMALL)


def test_sampling_and_stop_strings(queue: Path) -> None:
    sampling = {"temperature": 0.8, "top_p": 0.9, "stop": " and |zebra", "lookup": True}
    one, other = (answer("toy", **SMALL, **sampling) for _ in range(2))
    assert one.text == other.text  # the same seed
    assert " and " not in one.text and one.end in ("stop", "limit", "end")
    assert {head for _, head in one.tokens} <= {0, LOOKUP_HEAD}


def test_sides_are_parsed_from_their_names(queue: Path) -> None:
    job = trained()
    model, drafter = parse_sides(f"smollm2-135m, {job.run}")
    assert (model.model, model.drafter) == ("smollm2-135m", None)
    assert (drafter.model, drafter.drafter) == ("toy", run_folder(job.run) / "drafter")


def test_damaged_rows_end_a_transcript() -> None:
    rows = [
        {"unused": True},
        {"ms": 50.0, "tokens": [["A", 0]], "rejected": []},
        {"ms": 20.0, "tokens": [[" cat", 1], [" sat", 0]], "rejected": [" dog"]},
    ]
    found = parse_transcript(rows)
    assert found.passes[1] == TranscriptStep([(" cat", 1), (" sat", 0)], [" dog"], 20.0)
    assert (found.text, found.accepted, found.end) == ("A cat sat", 2.0, "") and found.unused
    assert (
        parse_transcript([]) == parse_transcript([{"waits": "Loading", "about": 1}]) == Transcript()
    )
    assert parse_transcript([{"tokens": 3}]).end == parse_transcript(["x"]).end == "error"


def test_a_speed_needs_enough_tokens() -> None:
    def of(tokens: int) -> float | None:
        one = TranscriptStep([("a", 0), ("b", 1)], [], 20.0)
        return Transcript([TranscriptStep([("A", 0)], [], 50.0), *[one] * (tokens // 2)]).speed

    assert of(MIN_TIMED_TOKENS - 2) is None and of(MIN_TIMED_TOKENS) == 100.0


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [("abc", "abd", 2), ("abc", "abc", None), ("ab", "abc", None), ("", "a", None)],
)
def test_first_difference(one: str, other: str, place: int | None) -> None:
    assert first_difference(one, other) == place
