"""Takes queued answers and gives several at a time, each in a thread."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from backend.queue.lifecycle import end_attempt
from backend.settings import settings
from backend.store.session import reading, writing
from backend.store.states import LIVE, Exit, Lane
from backend.store.tables import Attempt, Job
from jobs.playground.context import AnswerContext, claim_answer
from jobs.playground.pool import ModelPool
from jobs.playground.share import CpuShare, MainThread
from jobs.runtime.figures import LeaseLostError
from jobs.runtime.main import away_code, execute

MAX_ANSWERS, MAX_GUEST_ANSWERS = 6, 2  # answers at the same time
QUICK_S, QUIET_S = 0.03, 0.25  # between two looks: while used in the last `USED_S`, else
USED_S = 60.0
IDLE_FACTOR = 10  # times as long as an idle supervisor
JOBS_S = 0.5  # between two looks at whether jobs run


@dataclass
class RunningAnswer:
    """An answer that is being given; `code`: how it ended, None while it goes on."""

    context: AnswerContext
    thread: threading.Thread
    code: int | None = None


class PlaygroundServer:
    """The work of the playground's process. `turn` is called by its main thread, in a loop."""

    def __init__(self) -> None:
        self.models, self.share, self.main = ModelPool(), CpuShare(), MainThread()
        self._answers: list[RunningAnswer] = []
        self._used_at = self._looked_at = -1e9

    @property
    def idle_s(self) -> float:
        """Seconds since it was last used; 0 while an answer is given."""
        return 0.0 if self._answers else time.monotonic() - self._used_at

    def turn(self) -> None:
        """Take what is queued, look after what is done, and carry out calls in the main thread."""
        self._settle()
        if time.monotonic() - self._looked_at > JOBS_S:  # jobs need the processor, too
            self._looked_at = time.monotonic()
            running = select(Job.id).where(Job.state.in_([*LIVE]), Job.lane == Lane.SLOTS)
            with reading() as session:
                self.share.jobs = session.scalar(running.limit(1)) is not None
        while len(self._answers) < MAX_ANSWERS and self._take():
            self._used_at = time.monotonic()
        if self._answers:
            self._used_at = time.monotonic()
        quick = time.monotonic() - self._used_at < USED_S
        self.main.serve(QUICK_S if quick else QUIET_S)

    def stop(self) -> None:
        """Ask all answers to stop; those that nobody cancelled are queued again."""
        for answer in self._answers:
            answer.context.ask_stop()

    def close(self) -> None:
        self.stop()
        while self._answers:
            self._settle()
            self.main.serve(QUICK_S)

    def _take(self) -> bool:
        guests = sum(answer.context.guest for answer in self._answers)
        context = claim_answer(self.models, self.share, self.main, guests < MAX_GUEST_ANSWERS)
        if context is None:
            return False
        thread = threading.Thread(target=lambda: self._give(answer), name=context.run, daemon=True)
        answer = RunningAnswer(context, thread)
        self._answers.append(answer)
        thread.start()
        return True

    def _give(self, answer: RunningAnswer) -> None:
        try:
            answer.context.start()
            answer.context.note_resumption()
            answer.code = execute(answer.context)
        except LeaseLostError:
            answer.code = Exit.FENCED
        except OperationalError as error:  # tried again, as for a job
            answer.context.log(f"{type(error).__name__}: {error}")
            answer.code = away_code(error)
        except BaseException as error:
            answer.context.log(f"{type(error).__name__}: {error}")
            answer.code = Exit.ERROR
        finally:
            answer.context.stop_beating()

    def _settle(self) -> None:
        """Record the end of answers that are done; tried again where the database is busy."""
        for answer in [each for each in self._answers if each.code is not None]:
            try:
                with writing(durable=True) as session:
                    attempt = session.get_one(Attempt, answer.context.attempt_id)
                    end_attempt(session, attempt, answer.code)
            except OperationalError:
                return
            answer.thread.join()
            self._answers.remove(answer)


def serve() -> bool:
    """Work until nobody asks (True), the process is asked to end, or has no data folder."""
    server, began, asked = PlaygroundServer(), time.monotonic(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    while not asked.is_set() and settings().root.is_dir():
        if min(server.idle_s, time.monotonic() - began) > IDLE_FACTOR * settings().idle_exit:
            return True
        try:
            server.turn()
        except (OperationalError, sqlite3.Error, OSError) as error:
            with suppress(OSError):
                print(f"{time.strftime('%F %T')} {error}", flush=True)
            time.sleep(1)
    server.close()
    return False
