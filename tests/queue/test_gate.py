"""The gate: shares of places by address and visitor, who waits, and what is forgotten."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from hypothesis import given, strategies

from backend.errors import OverloadError, RateLimitError
from backend.queue import gate
from backend.queue.actor import Actor, guest_name
from backend.queue.gate import Gate, Rate
from backend.settings import Settings

PLACES = 8
HOST = Actor("mira", "host", "10.0.0.1")


def guest(number: int, client: str = "10.0.0.1", **more: bool) -> Actor:
    return Actor(guest_name("net", f"{number}"), "guest", client, **more)


class Room:
    """Visitors who take places of a gate and keep them."""

    def __init__(self, places: int = PLACES) -> None:
        self.gate = Gate(lambda: places)
        self.held: list[tuple[Actor, AsyncExitStack]] = []
        self.line: list[asyncio.Task[None]] = []

    async def enter(self, actor: Actor, most: int = 100, waiting: int = 0) -> None:
        stack = AsyncExitStack()
        await stack.enter_async_context(self.gate.slot(actor, most, waiting))
        self.held.append((actor, stack))

    async def queue(self, actor: Actor, most: int = 100) -> None:
        self.line.append(asyncio.create_task(self.enter(actor, most, waiting=100)))
        await asyncio.sleep(0)

    async def refused(self, actor: Actor, most: int = 100) -> OverloadError:
        with pytest.raises(OverloadError) as caught:
            await self.enter(actor, most)
        return caught.value

    async def leave(self, client: str) -> None:
        actor, stack = next(each for each in self.held if each[0].client == client)
        self.held.remove((actor, stack))
        await stack.aclose()
        await asyncio.sleep(0)

    def held_by(self, client: str) -> int:
        return sum(actor.client == client for actor, _ in self.held)


def in_a_room(act: Callable[[Room], Awaitable[None]]) -> None:
    asyncio.run(act(Room()))  # type: ignore[arg-type]


def test_an_address_may_have_everything_until_another_comes() -> None:
    async def act(room: Room) -> None:
        for number in range(PLACES):
            await room.enter(guest(number))
        error = await room.refused(guest(99))
        assert error.requests_ahead == PLACES and error.retry_after_s > 0
        for number in range(PLACES // 2):  # its half is there at once, for whoever comes
            await room.enter(guest(number, "10.0.0.2"))
        await room.refused(guest(9, "10.0.0.2"))
        await room.leave("10.0.0.1")
        await room.refused(guest(99))  # nothing is borrowed while others were just refused

    in_a_room(act)


def test_the_next_place_is_for_the_address_that_has_taken_least_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: clock[0])

    async def act(room: Room) -> None:
        for number in range(PLACES // 2):
            await room.enter(guest(number, "10.0.0.1"))
            await room.enter(guest(number, "10.0.0.2"))
        await room.queue(guest(10, "10.0.0.1"))
        await room.queue(guest(11, "10.0.0.3"))
        clock[0] = 9.0
        await room.leave("10.0.0.1")  # nine seconds of work
        assert room.held_by("10.0.0.3") == 1 and room.held_by("10.0.0.1") == PLACES // 2 - 1
        await room.leave("10.0.0.2")
        assert room.held_by("10.0.0.1") == PLACES // 2

    in_a_room(act)


def test_who_leaves_the_line_is_forgotten() -> None:
    async def act(room: Room) -> None:
        await room.enter(guest(1), most=1)
        await room.queue(guest(1), most=1)
        await room.queue(guest(1), most=1)
        room.line[0].cancel()
        await asyncio.sleep(0)
        await room.leave("10.0.0.1")
        assert room.held_by("10.0.0.1") == 1 and not room.gate._waiting
        await room.leave("10.0.0.1")
        assert not room.gate._active

    in_a_room(act)


def test_who_drops_the_cookie_stays_one_visitor() -> None:
    async def act(room: Room) -> None:
        for number in range(2):
            await room.enter(guest(number, is_new=True), most=2)
        error = await room.refused(guest(3, is_new=True), most=2)
        assert "2 of them yours" in error.why
        await room.enter(guest(3), most=2)  # its cookie came with the request

    in_a_room(act)


def test_hosts_have_a_share_of_their_own() -> None:
    async def act(room: Room) -> None:
        for number in range(PLACES):
            await room.enter(guest(number))
        await room.enter(HOST)

    in_a_room(act)


def test_visitors_of_a_room_count_one_by_one(
    current: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_ROOM_NETWORKS", '["10.0.0.0/24"]')
    room_settings = Settings()
    monkeypatch.setattr(gate, "settings", lambda: room_settings)
    assert gate.in_room("10.0.0.7") and not gate.in_room("10.0.1.7") and not gate.in_room("?")

    async def act(room: Room) -> None:
        for _ in range(PLACES):
            await room.enter(guest(1))
        for number in range(2, 2 + PLACES // 2):  # of the same address, but others
            await room.enter(guest(number))
        assert gate.address_key(guest(1, is_new=True)) == "10.0.0.1"

    in_a_room(act)
    everybody = [guest(number) for number in range(gate.MAX_EVENTS_PER_ADDRESS)]
    gate.require_short_queue(guest(99), everybody)  # of the same address, but others
    with pytest.raises(RateLimitError):
        gate.require_short_queue(guest(99), [guest(99)] * gate.MAX_EVENTS_PER_VISITOR)
    with pytest.raises(RateLimitError):
        elsewhere = [guest(number, "10.9.0.1") for number in range(gate.MAX_EVENTS_PER_ADDRESS)]
        gate.require_short_queue(guest(99, "10.9.0.1"), elsewhere)


Steps = list[tuple[int, int, bool]]
STEPS = strategies.lists(
    strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3), strategies.booleans()),
    max_size=60,
)


@given(STEPS)
def test_whatever_comes_no_address_starves_and_the_bound_holds(steps: Steps) -> None:
    """Visitors come and leave as they like; whoever waits is below nobody's share for long."""

    async def act(room: Room) -> None:
        for address, visitor, comes in steps:
            client = f"10.0.0.{address}"
            if comes:
                await room.queue(guest(visitor, client), most=3)
            elif room.held_by(client):
                await room.leave(client)
            working = room.gate._active
            assert len(working) <= PLACES * 3 // 2
            for number in range(4):
                mine = [t for t in working if t.visitor.startswith(f"10.0.0.{number} ")]
                assert max([0, *(sum(t.visitor == m.visitor for t in mine) for m in mine)]) <= 3
        while room.held:  # everybody leaves, so all who wait are served
            await room.leave(room.held[0][0].client)
        assert not room.gate._waiting and not room.gate._active
        assert all(task.done() for task in room.line)

    in_a_room(act)


def test_a_rate_counts_visitors_and_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ADDRESS_FACTOR", 2)
    rate = Rate(2)
    for _ in range(2):
        rate.spend(guest(1))
    with pytest.raises(RateLimitError, match="2 requests per minute"):
        rate.spend(guest(1))
    for number in (2, 3):
        rate.spend(guest(number))
    with pytest.raises(RateLimitError, match="4 requests per minute"):
        rate.spend(guest(4))
    rate.spend(guest(4, "10.0.0.2"))
    rate.spend(replace(HOST, client=""))  # this machine
