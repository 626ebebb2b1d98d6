"""The engine interface: how the supervisor starts, monitors and ends the process of a job.

An engine only launches processes: it does no scheduling and has no state beyond the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Ref = dict[str, Any]  # identifies a process; stored as JSON with the attempt


@dataclass(frozen=True)
class LaunchRequest:
    """Everything an engine needs to start one attempt.

    Attributes:
        argv: of the process; the first is the Python of this machine.
        slot: its number, from 0; jobs that run at the same time have different ones.
        device, threads: as the config asks for, such as "cuda:1"; 0 threads: as the settings.
        nice: how far its process stands back for others that need the processor.
    """

    attempt_id: int
    argv: tuple[str, ...]
    environment: dict[str, str]
    log: str
    folder: str
    slot: int = 0
    device: str = ""
    threads: int = 0
    token: str = ""
    nice: int = 0


@dataclass(frozen=True)
class PollResult:
    """The status of a process. "unknown" (engine not reachable) must never change a job's state.
    `code`: the exit code if `state` is "exited" and it is known; -9 for SIGKILL. `why`: what the
    engine says of an end that the process did not see."""

    state: Literal["running", "exited", "unknown"]
    code: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Room:
    """How many jobs may be there at the same time, as of when the engine last answered; nothing is
    started while it is not `known` to answer."""

    places: int
    known: bool = True


class Engine(Protocol):
    """A backend that runs jobs: local processes, a cluster, or a fake in tests.

    Attributes:
        name: stored with each attempt, which belongs to the engine of this name.
        host: whose slots its jobs take: this machine, or a cluster that many machines use.
        remote: its jobs are out of reach of this machine: only the engine knows of them.
    """

    name: str
    host: str
    remote: bool

    def room(self) -> Room:
        """Asked in every turn of the supervisor."""

    def reference(self, launch: LaunchRequest) -> Ref | None:
        """The reference that the process will have, stored before it is launched; None where it is
        known only afterward."""

    def launch(self, launch: LaunchRequest) -> Ref:
        """Start the process of an attempt; `OSError` if it was not started, and will not be. Where
        `reference` is known beforehand, a process that was started already is not started twice."""

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """Of each, whether the process or any of its children is still running."""

    def stop(self, ref: Ref) -> None:
        """Ask the main process, without its children, to end; it may save first."""

    def kill(self, ref: Ref) -> None:
        """Kill the process and all its children immediately, or as soon as the engine can."""

    def forget(self, ref: Ref) -> None:
        """The end of the attempt is stored: the engine need not remember it."""
