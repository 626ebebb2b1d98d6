"""Guests in the playground: what they may ask for, how often, and that the host comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import ConfigError, ForbiddenError, RateLimitError
from backend.queue import permissions, rate_limit, service
from backend.queue.actor import ALIAS_LETTERS, Actor, guest_name, with_alias
from backend.queue.lifecycle import start_answer
from backend.queue.rate_limit import RateLimiter
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import Lane, State
from backend.store.tables import Job
from jobs.playground import context
from jobs.playground.context import claim_answer
from jobs.playground.pool import ModelPool
from jobs.playground.share import CpuShare, MainThread
from jobs.submit import submit
from tests.queue.conftest import HOST

ADA, BOB, EVE = (Actor(guest_name(f"aa{n}", "1234"), "guest", f"10.0.0.{n}") for n in range(3))
SHORT = {"prompt": "One day", "sides": "toy", "max_new_tokens": 8}


@pytest.fixture(autouse=True)
def playground(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("answers", "changes"):
        monkeypatch.setattr(rate_limit, name, RateLimiter())


def limit(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SLIMSCOPE_{name}", str(value))
    settings.cache_clear()


def ask(who: Actor, **values: object) -> Job:
    return submit("generate", {**SHORT, **values}, who)


def test_a_guest_asks_by_default_and_adds_no_job() -> None:
    job = ask(ADA)
    assert job.owner == ADA.name and job.lane == Lane.PLAYGROUND
    assert job.priority == permissions.GUEST_PRIORITY
    with pytest.raises(ForbiddenError, match="read-only"):
        submit("count", {"steps": 1}, ADA)
    with pytest.raises(ForbiddenError, match="read-only"):
        ask(Actor("guest"))  # one without a name


def test_the_host_may_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, GUEST_ANSWERS=0)
    with pytest.raises(ForbiddenError, match="read-only"):
        ask(ADA)
    assert permissions.may_not_vote(ADA) and not permissions.gives_names() and queries.jobs() == []


def test_answers_for_guests_are_short_to_short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "GUEST_LETTERS", 100)
    monkeypatch.setattr(permissions, "GUEST_TOKENS", 16)
    with pytest.raises(ForbiddenError, match="limit for guests is 16"):
        ask(ADA, max_new_tokens=17)
    with pytest.raises(ForbiddenError, match="guests may send 100"):
        ask(ADA, prompt="x" * 60, system="y" * 41)
    ask(ADA, max_new_tokens=16, prompt="x" * 60, system="y" * 40)
    ask(HOST, max_new_tokens=60, prompt="x" * 200)


def test_each_has_one_at_a_time_and_all_have_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, GUEST_ANSWERS=2)
    job = ask(ADA)
    with pytest.raises(ForbiddenError, match="already have an active run"):
        ask(with_alias(ADA, "Somebody else"))
    ask(BOB)
    with pytest.raises(ForbiddenError, match="the maximum"):
        ask(EVE)
    with pytest.raises(ForbiddenError, match=r"only their own|read-only"):
        service.cancel(job.run, BOB)
    assert service.cancel(job.run, ADA) == State.CANCELLED
    ask(EVE)


def test_they_ask_a_few_times_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "ANSWERS_PER_MINUTE", 2)
    for _ in range(2):
        service.cancel(ask(ADA).run, ADA)
    with pytest.raises(RateLimitError, match="2 requests per minute"):
        ask(ADA)
    ask(BOB)


def test_what_is_refused_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "GUEST_TOKENS", 16)
    monkeypatch.setattr(rate_limit, "ANSWERS_PER_MINUTE", 2)
    monkeypatch.setattr(rate_limit, "CHANGES_PER_MINUTE", 3)
    for _ in range(5):
        with pytest.raises(ForbiddenError, match="limit for guests"):
            ask(ADA, max_new_tokens=17)
        with pytest.raises(ConfigError):
            ask(ADA, sides="no/such-model-here", prompt="")
    job = ask(ADA)
    for _ in range(5):
        with pytest.raises(ForbiddenError, match="already have an active run"):
            ask(ADA)
    service.cancel(job.run, ADA)
    ask(ADA)


def test_a_class_behind_one_address_shares_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "ANSWERS_PER_MINUTE", 1)
    monkeypatch.setattr(rate_limit, "CHANGES_PER_MINUTE", 4)
    monkeypatch.setattr(rate_limit, "SHARED", 8)
    people = [Actor(guest_name("school", f"{n}"), "guest", "10.0.0.1") for n in range(9)]
    for person in people[:8]:
        service.cancel(ask(person).run, person)
    with pytest.raises(RateLimitError, match="1 requests per minute"):
        ask(people[0])
    with pytest.raises(RateLimitError, match="8 requests per minute"):
        ask(people[8])  # as if somebody dropped the cookie again and again
    ask(EVE)


def test_the_host_comes_first_and_guests_leave_room() -> None:
    theirs, ours = ask(ADA), ask(HOST)
    with writing() as session:
        first = start_answer(session, {"pid": 1}, guests=True)
        assert first is not None and first.job_id == ours.id
        assert start_answer(session, {"pid": 1}, guests=False) is None
        second = start_answer(session, {"pid": 1}, guests=True)
        assert second is not None and second.job_id == theirs.id
        assert start_answer(session, {"pid": 1}, guests=True) is None
        for attempt in (first, second):  # of no process that could be ended
            attempt.engine_ref = None


def test_who_waits_locks_nobody_out_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process looks many times a second."""
    ask(ADA)
    monkeypatch.setattr(context, "writing", lambda **_: pytest.fail("It took the lock."))
    assert claim_answer(ModelPool(), CpuShare(), MainThread(), guests=False) is None


def test_the_name_a_guest_gives_stands_behind_theirs() -> None:
    named = with_alias(ADA, f"Ada\n\u202eLovelace\0 {'x' * 60}")
    assert named.alias.startswith("Ada Lovelace xxx") and len(named.alias) == ALIAS_LETTERS
    job = ask(named)
    assert job.owner == f"{ADA.name} {named.alias}"
    assert queries.events(job.id)[0].actor == job.owner
    assert not permissions.may_not_cancel(ADA, job.owner)  # whatever they call themselves now
    assert permissions.may_not_cancel(with_alias(BOB, ADA.name), job.owner)
    assert with_alias(HOST, "Ada") == HOST and with_alias(Actor("guest"), "Ada").alias == ""
