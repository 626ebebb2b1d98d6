"""The states of a job and the allowed transitions. Terminal states change only when a user resumes
the job, which queues it again. A queued job whose row is damaged fails at once.

    queued -> starting -> running -> succeeded | failed | cancelling -> cancelled | lost"""

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


class Lane(StrEnum):
    """Where a job starts: a process of its own in a free slot; for a job of seconds also one
    beside the slots, at low priority for the processor."""

    SLOTS = "slots"
    QUICK = "quick"


TAKES: dict[Lane, tuple[Lane, ...]] = {  # of which lanes a place takes jobs
    Lane.SLOTS: (Lane.SLOTS, Lane.QUICK),
    Lane.QUICK: (Lane.QUICK,),
}
QUICK_SLOT = 1_000  # number of the slot beside the others, of which there are at most 64

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
    """Exit codes of a job's process, the same for all engines."""

    DONE = 0
    ERROR = 1
    STOPPED = 75  # stopped on request; all completed work is checkpointed
    FENCED = 76  # another attempt owns the job; nothing was written
    NO_SPACE = 77  # the disk is full; tried again until it is not
    FOLDER_GONE = 78  # the folder of the run was removed; everything in it is made anew
    AWAY = 79  # the database was away for too long; tried again until it is not
    OTHER_VERSION = 80  # where it runs, another version of Slimscope is installed
