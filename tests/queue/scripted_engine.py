"""An engine whose processes do what a test says."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import update

from backend.queue.engines.base import LaunchRequest, PollResult, Ref, Room
from backend.store.session import writing
from backend.store.tables import Attempt


@dataclass
class ScriptedEngine:
    """Processes that live in a dict. The test says what becomes of them."""

    slots: int = 2
    name: str = "scripted"
    host: str = field(default_factory=platform.node)
    remote: bool = False
    known: bool = True  # whether it answers
    fate: dict[int, PollResult] = field(default_factory=dict)
    launched: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)

    def room(self) -> Room:
        return Room(self.slots, self.known)

    def reference(self, launch: LaunchRequest) -> Ref | None:
        return {"id": launch.attempt_id} if self.remote else None

    def launch(self, launch: LaunchRequest) -> Ref:
        assert launch.attempt_id not in self.launched, "an attempt was started twice"
        self.launched.append(launch.attempt_id)
        self.fate[launch.attempt_id] = PollResult("running")
        return {"id": launch.attempt_id}

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        gone = PollResult("exited" if self.known else "unknown")
        return [self.fate.get(ref["id"], gone) for ref in refs]

    def stop(self, ref: Ref) -> None:
        self.end(ref["id"], "stopped", 75)

    def kill(self, ref: Ref) -> None:
        self.end(ref["id"], None, -9)

    def forget(self, ref: Ref) -> None:
        self.forgotten.append(ref["id"])

    def end(self, attempt: int, outcome: str | None, code: int) -> None:
        with writing() as session:
            live = update(Attempt).where(Attempt.id == attempt, Attempt.ended_at.is_(None))
            session.execute(live.values(outcome=outcome))
        self.fate[attempt] = PollResult("exited", code)
