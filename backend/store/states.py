"""States of a job and the allowed transitions.

    queued -> starting -> running -> succeeded | failed | cancelling -> cancelled | lost

Terminal states change only when a user resumes the job, which queues it again. A queued job whose
row is damaged fails at once."""

from enum import IntEnum, StrEnum


class State(StrEnum):
    """States of a job."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class Lane(StrEnum):
    """Lanes of the queue: normal jobs wait for a slot; jobs of seconds can also use the quick slot,
    whose process has a low priority."""

    SLOTS = "slots"
    QUICK = "quick"


LANES_OF_SLOT: dict[Lane, tuple[Lane, ...]] = {  # lanes whose jobs may use a slot
    Lane.SLOTS: (Lane.SLOTS, Lane.QUICK),
    Lane.QUICK: (Lane.QUICK,),
}
QUICK_SLOT = 1_000  # number of the quick slot; there are at most 64 others

LIVE = frozenset({State.STARTING, State.RUNNING, State.CANCELLING})
ACTIVE = LIVE | {State.QUEUED}
TERMINAL = frozenset(State) - ACTIVE

ALLOWED: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.CANCELLED, State.FAILED}),
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
    """Exit codes of a job's process, for all engines."""

    DONE = 0
    ERROR = 1
    STOPPED = 75  # stopped on request; all completed work is checkpointed
    FENCED = 76  # another attempt owns the job; nothing was written
    NO_SPACE = 77  # the disk is full; retried until there is space
    FOLDER_GONE = 78  # the run's folder was removed; the run starts again without checkpoints
    AWAY = 79  # the database was away for too long; retried until it answers
    OTHER_VERSION = 80  # another version of Slimscope is installed on the machine of the process
