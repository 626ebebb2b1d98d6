"""The states of a job and the ways between them.

    queued -> starting -> running -> succeeded | failed | cancelling -> cancelled | lost

Terminal states change only when a person resumes the job, which queues it again.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class State(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


LIVE = frozenset({State.STARTING, State.RUNNING, State.CANCELLING})
ACTIVE = LIVE | {State.QUEUED}
TERMINAL = frozenset(State) - ACTIVE

ALLOWED: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.QUEUED, State.CANCELLING, *TERMINAL}),
    State.RUNNING: frozenset({State.CANCELLING, State.QUEUED, *TERMINAL}),
    State.CANCELLING: frozenset(TERMINAL),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.LOST: frozenset({State.QUEUED}),
}

RESUMABLE = frozenset(state for state, to in ALLOWED.items() if State.QUEUED in to) & TERMINAL


class Exit(IntEnum):
    """Exit codes of a job's process; they mean the same to every engine."""

    DONE = 0
    ERROR = 1
    STOPPED = 75  # asked to stop; everything finished so far is in a checkpoint
    FENCED = 76  # another attempt holds the job now; nothing was written
