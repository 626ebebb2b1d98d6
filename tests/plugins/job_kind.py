"""Kinds of job that do nothing but behave: on time, badly, or not at all."""

import errno
import os
import signal
import time
from itertools import takewhile

from pydantic import Field

from backend.errors import ComputeError
from backend.metric_key import MetricKey
from backend.reporter import stop_if_asked
from jobs.estimates import PhaseWork
from jobs.kind import JobConfig, Kind, Requirements
from jobs.runtime.context import JobContext


class CountConfig(JobConfig):
    steps: int = Field(5, ge=1)
    pause: float = 0.1
    dies_at: int = -1
    tears_at: int = -1
    fails_at: int = -1
    full_at: int = -1
    deaf: bool = False


def count(config: CountConfig, context: JobContext) -> None:
    """Counts to `steps`, one checkpoint each, from behind the last checkpoint."""
    done = [*takewhile(lambda n: context.checkpoints.find(f"step-{n}"), range(config.steps))]
    for step in range(len(done), config.steps):
        context.progress(step, config.steps, "counting")
        if config.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            stop_if_asked(context)
        if step == config.dies_at and context.attempt_n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == config.fails_at and context.attempt_n == 1:
            raise ComputeError("The count failed.", "It was told to.", "Resume it.")
        if step == config.full_at and context.attempt_n == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        context.metric(MetricKey("count"), step, step)
        context.metric(MetricKey("attempt"), context.attempt_n, step)
        time.sleep(config.pause)
        with context.checkpoints.write(f"step-{step}") as folder:
            (folder / "done.txt").write_text(str(step))
            if step == config.tears_at and context.attempt_n == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    context.result("run", MetricKey("total"), config.steps)


def requirements(config: CountConfig) -> Requirements:
    """Of more memory than the place of runs of seconds gives: what is counted waits for a slot."""
    return Requirements("Count", work=[PhaseWork("count", 1.0)], memory={"count": 2 * 10**9})


KINDS = (
    Kind("count", "Count", "Counts.", CountConfig, requirements, "tests.plugins.job_kind:count"),
)
