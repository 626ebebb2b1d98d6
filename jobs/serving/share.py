"""The part of the processor that answers may use: less while a job runs."""

import os
from contextlib import suppress

from backend.settings import available_threads, settings

NICE = 5  # of 19; a job has 0, so that it gets most of a core both want


class CpuShare:
    """The threads of each model; `jobs` beside them take half."""

    def __init__(self) -> None:
        self.jobs = False

    def threads(self) -> int:
        every = settings().threads or available_threads()
        return max(1, every // 2 if self.jobs else every)


def lower_priority() -> None:
    """Lower the priority of this thread and of those it starts."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
