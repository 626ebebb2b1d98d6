"""The five calls by which the supervisor starts, watches and ends a job's process, whoever runs it.

An engine is a launcher: it orders nothing and remembers nothing the database does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Ref = dict[str, Any]  # how an engine finds a process again; stored as JSON with the attempt


@dataclass(frozen=True)
class LaunchRequest:
    """What an engine needs to start one attempt."""

    attempt_id: int
    argv: tuple[str, ...]
    environment: dict[str, str]
    log: str
    folder: str


@dataclass(frozen=True)
class PollResult:
    """What became of a process. "unknown" (engine not reachable) must never change a job's state.

    Attributes:
        code: the exit code when `state` is "exited" and it is known; -9 for a SIGKILL.
    """

    state: Literal["running", "exited", "unknown"]
    code: int | None = None


class Engine(Protocol):
    """A way to run jobs: as local processes, on a cluster, or faked in a test."""

    name: str

    def capacity(self) -> int:
        """How many jobs may run at the same time."""

    def launch(self, launch: LaunchRequest) -> Ref:
        """Starts the attempt's process; called at most once for an attempt."""

    def poll(self, ref: Ref) -> PollResult:
        """Whether the process still runs, with everything it started."""

    def stop(self, ref: Ref) -> None:
        """Asks the process, and only its leader, to end (it may still save)."""

    def kill(self, ref: Ref) -> None:
        """Ends the process and everything it started, at once."""
