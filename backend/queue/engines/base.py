"""The engine interface: how the supervisor starts, monitors and ends the process of a job.

An engine only launches processes: it does no scheduling and has no state beyond the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Ref = dict[str, Any]  # identifies a process; stored as JSON with the attempt


@dataclass(frozen=True)
class LaunchRequest:
    """Everything an engine needs to start one attempt.

    Attributes:
        slot: its number, from 0; jobs that run at the same time have different ones.
        device: what the job's config asks for, such as "auto" or "cuda:1".
        threads: the number it asks for; 0 leaves it to the settings.
    """

    attempt_id: int
    argv: tuple[str, ...]
    environment: dict[str, str]
    log: str
    folder: str
    slot: int = 0
    device: str = ""
    threads: int = 0


@dataclass(frozen=True)
class PollResult:
    """The status of a process. "unknown" (engine not reachable) must never change a job's state.

    Attributes:
        code: the exit code if `state` is "exited" and it is known; -9 for SIGKILL.
    """

    state: Literal["running", "exited", "unknown"]
    code: int | None = None


class Engine(Protocol):
    """A backend that runs jobs: local processes, a cluster, or a fake in tests."""

    name: str

    def capacity(self) -> int:
        """Maximum number of concurrent jobs."""

    def launch(self, launch: LaunchRequest) -> Ref:
        """Start the process of an attempt; called at most once per attempt."""

    def poll(self, ref: Ref) -> PollResult:
        """Whether the process or any of its children is still running."""

    def stop(self, ref: Ref) -> None:
        """Ask the main process, without its children, to end; it may save first."""

    def kill(self, ref: Ref) -> None:
        """Kill the process and all its children immediately."""
