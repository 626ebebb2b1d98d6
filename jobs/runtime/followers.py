"""The other processes of a run that trains on several: started by the process of the attempt, in
its process group. They read their task on their standard input, whose end is the end of the first.
When one of them dies, so does the first: the attempt has ended, and is resumed as after any death.

Such a process, `python -m jobs.runtime.followers`, knows no database and writes no file; what it
prints is in the log. Only the first one is asked to stop, and agrees with the others on when.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError, SlimscopeError
from backend.queue.launcher import CODE, FOR_SUPERVISOR
from backend.reporter import SilentReporter
from backend.settings import settings
from backend.store.states import Exit
from jobs.fields.models import resolve_model
from jobs.fields.processes import ProcessesConfig
from jobs.kind import JobConfig, Kind, kind_named, load_work
from jobs.runtime.context import JobContext
from jobs.runtime.progress import limit_memory
from jobs.runtime.rank import FollowerTask, Rank

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REASON_S = 10.0  # for the first process to end because of what ends this one
RENDEZVOUS = ".rendezvous-"  # and the number of the attempt
NO_DATABASE = "sqlite://"  # an empty one in memory: followers report nothing
LEAVE_S = 5.0  # for a process to end by itself
LOOK_S = 0.05
NOTICED_S = 3.0  # from the death of one to the last error that others have of it


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


@contextmanager
def followers(kind: Kind, config: JobConfig, context: JobContext) -> Iterator[None]:
    """Run the processes after the first while a run is at work; none where it has one."""
    if not isinstance(config, ProcessesConfig) or config.processes == 1:
        yield
        return
    limit_memory(settings().job_gb / config.processes)
    with rendezvous_file(context.work, context.attempt_n) as rendezvous:
        context.rank = Rank(0, config.processes, rendezvous)
        team = FollowerProcesses(kind, config, context, context.rank)
        try:
            yield
        except (SlimscopeError, CancelledError):
            raise
        except Exception:
            team.await_death()  # which may be the reason, and ends this process
            raise
        finally:
            team.end()


@contextmanager
def rendezvous_file(work: Path, attempt: int) -> Iterator[Path]:
    """The file by which the processes of an attempt meet, among the checkpoints of its run. It goes
    with what is named after it; so does what attempts before left that were killed."""
    _remove_rendezvous_files(work)
    yield work / f"{RENDEZVOUS}{attempt}"
    _remove_rendezvous_files(work)


def _remove_rendezvous_files(work: Path) -> None:
    for file in work.glob(f"{RENDEZVOUS}*"):
        file.unlink(missing_ok=True)


class FollowerProcesses:
    """Those of one attempt."""

    def __init__(self, kind: Kind, config: JobConfig, context: JobContext, first: Rank) -> None:
        self._log, self._ends, self._dying = context.log, threading.Event(), threading.Lock()
        values = config.model_dump(mode="json")
        model = resolve_model(values["model"]).source
        self._children = [
            self._start(
                FollowerTask(
                    kind.name,
                    values,
                    model,
                    str(context.work),
                    context.attempt_n,
                    str(first.rendezvous),
                    number,
                    first.world,
                    context.plan if kind.plan else {},
                )
            )
            for number in range(1, first.world)
        ]
        context.accompany([child.pid for child in self._children])

    def _start(self, task: FollowerTask) -> subprocess.Popen[bytes]:
        child = started(environment())
        assert child.stdin
        child.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        child.stdin.flush()
        threading.Thread(target=self._watch, args=(task.number, child), daemon=True).start()
        return child

    def _watch(self, number: int, child: subprocess.Popen[bytes]) -> None:
        """End this process if that one dies."""
        if (code := child.wait()) and not self._ends.is_set():
            self._die_of(number, code)

    def _die_of(self, number: int, code: int) -> NoReturn:
        """End this process at once, as the one of that number has ended."""
        with self._dying:  # one of two threads that notice
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._log(f"Process {number + 1} died ({how}): this attempt ends with it.")
            if code == -signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)  # so that the reason given is the same
            os._exit(Exit.ERROR)

    def await_death(self) -> None:
        """Return if no process has died within a moment; else this one ends."""
        deadline = time.monotonic() + NOTICED_S
        while time.monotonic() < deadline:
            for number, child in enumerate(self._children, 1):
                if code := child.poll():
                    self._die_of(number, code)
            time.sleep(LOOK_S)

    def end(self) -> None:
        """End all that are left."""
        self._ends.set()
        for child in self._children:
            assert child.stdin
            with suppress(OSError):
                child.stdin.close()
        for child in self._children:
            try:
                child.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def started(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in the group of this one, which waits for its task."""
    line = [sys.executable, "-m", "jobs.runtime.followers"]
    return subprocess.Popen(line, cwd=CODE, env=environment, stdin=subprocess.PIPE)


def environment() -> dict[str, str]:
    """That of this process, without what leads to a database or a cluster."""
    inherited = {name: text for name, text in os.environ.items() if name not in FOR_SUPERVISOR}
    return inherited | {"SLIMSCOPE_DATABASE_URL": NO_DATABASE}
