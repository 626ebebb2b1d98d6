"""A storm of kills: every run ends once, with the weights and figures of an unkilled twin.

    make bench-scale.storm
    make bench-scale.storm ARGS="--runs 28 --every 3"

On the toy model in a temporary data folder. First one run of each config, undisturbed; then
`--runs` runs of the same configs, while every few seconds one of these is hit:
a job's process (SIGKILL, or SIGSTOP and two seconds later SIGCONT), the supervisor, the
dashboard. It exits with 1 unless each run succeeded once, equals its twin and left
no process behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

from backend.queue import service
from backend.queue.actor import Actor
from backend.store import frames, queries
from backend.store.migrate import upgrade
from backend.store.session import reading
from backend.store.states import ACTIVE, State
from backend.store.tables import Attempt, Job
from benchmarks.screen.server import dashboard, reads
from jobs.reproduction import compare
from jobs.submit import submit

HOST = Actor("storm", "host")
TEXT = {"model": "toy", "segments": 4, "context": 64, "windows": 4, "threads": 1}
FLOAT32 = {"precision": "float32"}
TRAINED = {"group_size": 32, "rank": 4, "steps": 60, "batch": 2, "length": 32}
DRAFTER = {
    "model": "toy",
    "answers": 48,
    "heldout": 16,
    "answer_tokens": 24,
    "minutes": 0,
    "steps": 60,
    "batch": 4,
    "threads": 1,
    "draft_vocabulary": 256,
}
CONFIGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dlqat", {**TEXT, **FLOAT32, **TRAINED}),
    ("amphista", {**DRAFTER, **FLOAT32}),
    ("sds", {**TEXT, **FLOAT32}),
    ("dlqat", {**TEXT, **FLOAT32, **TRAINED, "stages": "rtn, gptq, dlqat, dlqat-kd", "seed": 1}),
    ("amphista", {**DRAFTER, **FLOAT32, "architecture": "hydra"}),
)
PAUSE_S, LONGEST_S = 2.0, 3600.0
PATIENCE = 1_000  # retries: the storm ends, and is not to decide what is lost


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=28)
    parser.add_argument("--every", type=float, default=3.0, help="Seconds between two hits.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=sorted({kind for kind, _ in CONFIGS}))
    return parser.parse_args()


def ours(data: Path) -> Iterator[psutil.Process]:
    """Processes that work on this data folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLIMSCOPE_DATA_DIR") == str(data):
                yield process


def running(data: Path, module: str) -> list[psutil.Process]:
    """Those of them that run a module, or a file."""
    found = []
    for process in ours(data):
        with contextlib.suppress(psutil.Error):
            if module in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Storm:
    """Hits processes at random, and counts what it has hit."""

    def __init__(self, data: Path, every: float, seed: int) -> None:
        self.data, self.every = data, every
        self.hits: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._stopped: list[tuple[float, psutil.Process]] = []
        self._dashboards = ExitStack()
        self._acts: dict[str, Callable[[], bool]] = {
            "job, SIGKILL": lambda: self._kill("jobs.runtime.main"),
            "job, SIGSTOP": self._stop,
            "supervisor, SIGKILL": lambda: self._kill("backend.queue.supervisor"),
            "dashboard, SIGKILL": self._restart,
        }

    def __enter__(self) -> Storm:
        self._dashboards.enter_context(dashboard(self.data))
        return self

    def __exit__(self, *_: object) -> None:
        for _, process in self._stopped:
            _go_on(process)
        self._dashboards.close()

    def turn(self) -> None:
        """One hit, and the pause before the next; what was stopped goes on in time."""
        name = self._random.choices([*self._acts], weights=(6, 3, 2, 1))[0]
        self.hits[name] += self._acts[name]()
        time.sleep(self.every * self._random.uniform(0.5, 1.5))
        now = time.monotonic()
        for since, process in list(self._stopped):
            if now - since > PAUSE_S:
                _go_on(process)
                self._stopped.remove((since, process))

    def _victim(self, module: str) -> psutil.Process | None:
        found = running(self.data, module)
        return self._random.choice(found) if found else None

    def _kill(self, module: str) -> bool:
        process = self._victim(module)
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return process is not None

    def _stop(self) -> bool:
        process = self._victim("jobs.runtime.main")
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.suspend()
                self._stopped.append((time.monotonic(), process))
        return process is not None

    def _restart(self) -> bool:
        self._dashboards.close()
        self._dashboards = ExitStack()
        self._dashboards.enter_context(dashboard(self.data))
        return True


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)


def until_ended(jobs: list[int], act: Callable[[], None]) -> None:
    """Act until none of the jobs is active, or an hour has passed."""
    limit = time.monotonic() + LONGEST_S
    while time.monotonic() < limit:
        if not {queries.job(job).state for job in jobs} & ACTIVE:
            return
        act()


def faults(whole: Job, killed: Job) -> list[str]:
    """What is wrong with a run beside its twin."""
    ends = [event for event in queries.events(killed.id) if event.type in ("succeeded", "lost")]
    found = [] if killed.state == State.SUCCEEDED else [f"{killed.state}: {killed.error_text}"]
    found += [] if len(ends) == 1 else [f"ended {len(ends)} times"]
    outcome = compare(whole.id, killed.id)
    found += [] if outcome.outcome == "equal" else [str(outcome)]
    for what, stored in (("statistics", frames.tensor_table), ("profiles", frames.profile_names)):
        one, other = (rows_of(stored(job.id)) for job in (whole, killed))
        if one != other:
            found.append(f"other {what}: {sorted(map(str, one ^ other))[:3]}")
    return found


def rows_of(table: pd.DataFrame) -> set[tuple[Any, ...]]:
    return {tuple(map(str, row)) for row in table.itertuples(index=False)}


def main() -> None:
    chosen, out = arguments(), Console()
    service.RETRIES = PATIENCE
    with tempfile.TemporaryDirectory(prefix="slimscope-storm-") as folder, reads(Path(folder)):
        data = Path(folder)
        os.environ |= {"SLIMSCOPE_SLOTS": "2", "SLIMSCOPE_EXAMPLES": "false"}
        upgrade()
        configs = [(kind, config) for kind, config in CONFIGS if kind in chosen.kinds]
        twins = [submit(kind, config, HOST).id for kind, config in configs]
        until_ended(twins, lambda: time.sleep(1))
        began = time.monotonic()
        with Storm(data, chosen.every, chosen.seed) as storm:
            order = [n % len(configs) for n in range(chosen.runs)]
            jobs = [submit(*configs[n], HOST).id for n in order]
            until_ended(jobs, storm.turn)
        seconds = time.monotonic() - began
        wrong = {
            queries.job(job).run: found
            for n, job in zip(order, jobs, strict=True)
            if (found := faults(queries.job(twins[n]), queries.job(job)))
        }
        with reading() as session:
            open_attempts = session.query(Attempt).where(Attempt.ended_at.is_(None)).count()
        attempts = [queries.job(job).attempts_made for job in jobs]
        time.sleep(5)  # the supervisor is idle for a second, and ends
        names = ("jobs.runtime.main", "backend.queue.supervisor")
        left = [process.pid for name in names for process in running(data, name)]
    table = Table("hit", "times", box=None)
    for name, count in storm.hits.most_common():
        table.add_row(name, str(count))
    out.print(table)
    out.print(
        f"{len(jobs)} runs in {seconds:.0f} s, "
        f"{sum(attempts)} attempts, at most {max(attempts)} of one run; "
        f"{len(wrong)} differ from their twins, {open_attempts} attempts open."
    )
    for run, found in wrong.items():
        out.print(f"{run}: {'; '.join(found)}", markup=False)
    found = {"hits": storm.hits, "runs": len(jobs), "attempts": sum(attempts)}
    found |= {"wrong": len(wrong), "left": len(left), "seconds": round(seconds)}
    print(json.dumps(found))
    sys.exit(bool(wrong or open_attempts or left))


if __name__ == "__main__":
    main()
