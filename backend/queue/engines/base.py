"""The engine interface, by which the supervisor starts, monitors and ends the process of a job.

An engine only launches processes: it does no scheduling, and has no state outside the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Ref = dict[str, Any]  # identifies a process; stored as JSON with the attempt


@dataclass(frozen=True)
class LaunchRequest:
    """Everything an engine needs to start one attempt.

    Attributes:
        attempt_id: id of the attempt; 0 for a spare process.
        argv: command line of the process; the first item is the Python of this machine.
        environment: environment variables of the process.
        log: path of the log file.
        folder: working folder.
        slot: number of the slot, from 0; concurrent jobs have different slots.
        device: device in the config, such as "cuda:1"; empty for any.
        threads: number of threads in the config; 0 for that of the settings.
        token: token of the attempt.
        nice: niceness of the process, 0 for normal priority.
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
    """The status of a process.

    Attributes:
        state: "unknown" if the engine cannot be reached, which must never change a job's state.
        code: exit code of an exited process, -9 for SIGKILL; None if unknown.
        why: the engine's reason for an end that the process could not report.
    """

    state: Literal["running", "exited", "unknown"]
    code: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Room:
    """Capacity of an engine.

    Attributes:
        places: number of concurrent jobs, according to the engine's last answer.
        is_reachable: the engine answers; nothing is started while it does not.
    """

    places: int
    is_reachable: bool = True


class Engine(Protocol):
    """A backend that runs jobs: local processes, a cluster, or a fake in tests.

    Attributes:
        name: name of the engine, which is stored with each attempt.
        host: owner of the slots: this machine, or a cluster that many machines use.
        remote: the jobs run elsewhere, so that only the engine can monitor them.
    """

    name: str
    host: str
    remote: bool

    def room(self) -> Room:
        """The present capacity; called in every iteration of the supervisor."""

    def reference(self, launch: LaunchRequest) -> Ref | None:
        """The reference of a process before its launch; None if only the launch determines it."""

    def launch(self, launch: LaunchRequest) -> Ref:
        """Start the process of an attempt.

        If `reference` determines the reference, a second call does not start a second process.

        Raises:
            OSError: the process was not started, and will not be.
        """

    def poll(self, refs: Sequence[Ref]) -> list[PollResult]:
        """The status of processes; a process runs while it or any of its children does."""

    def stop(self, ref: Ref) -> None:
        """Ask the main process, but not its children, to end; it may save its work first."""

    def kill(self, ref: Ref) -> None:
        """Kill the process and all its children, as soon as the engine can."""

    def forget(self, ref: Ref) -> None:
        """Forget a process after the end of its attempt has been stored."""
