"""A process that trains with the first one of a run: `python -m jobs.runtime.follower`, with its
task on the standard input. It knows no database and writes no file; what it prints is in the log.
Only the first one is asked to stop, and agrees with the others on when."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError
from backend.reporter import SilentReporter
from backend.settings import settings
from backend.store.states import Exit
from jobs.kind import kind_named, load_work
from jobs.runtime.rank import FollowerTask, Rank
from jobs.runtime.usage import limit_memory

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REASON_S = 10.0  # for the first process to end because of what ends this one


class FollowerContext(SilentReporter):
    """A follower's view of its run: it reads the checkpoints, and reports nothing. `model`: that of
    the run, as what loads without a database. `plan`: what the run does to each layer, where its
    kind has plans."""

    def __init__(self, task: FollowerTask) -> None:
        self.rank: Rank | None = Rank(task.number, task.world, Path(task.rendezvous))
        self.model, self.plan = task.model, task.plan
        self.checkpoints = Checkpoints(Path(task.work), attempt=task.attempt)

    def environment(self, **facts: Any) -> None:
        """The first process records them."""


def main() -> int:
    """Follow the first process to the end of its trainings."""
    for asking in ASKING:
        signal.signal(asking, signal.SIG_IGN)
    if not (line := sys.stdin.readline()):
        return Exit.DONE  # the first has ended before it said what to do
    task = FollowerTask(**json.loads(line))
    threading.Thread(target=leave_with_the_first, daemon=True).start()
    limit_memory(settings().job_gb / task.world)
    kind = kind_named(task.kind)
    try:
        load_work(kind.follow)(kind.config.model_validate(task.config), FollowerContext(task))
    except CancelledError:
        return Exit.DONE
    except Exception:  # the same in all processes, or due to the end of another: then that counts
        reason = traceback.format_exc()
        time.sleep(REASON_S)
        print(f"Process {task.number + 1} of {task.world}:\n{reason}", flush=True)
        return Exit.ERROR
    return Exit.DONE


def leave_with_the_first() -> None:
    """End this process when the first one has ended, which holds the other end of the input."""
    sys.stdin.read()
    os._exit(Exit.DONE)


if __name__ == "__main__":
    sys.exit(main())
