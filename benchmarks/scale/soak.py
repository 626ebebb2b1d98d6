"""A long day in short: what grows while people look, guests ask, runs end and processes are killed.

    make bench-scale.soak
    make bench-scale.soak ARGS="--minutes 60"
    make bench-scale.soak ARGS="--minutes 2 --browsers 2 --runs 100000"

On the toy model in a scratch folder: ten browsers stay open on the pages that follow the queue; two
guests a minute come, look at pages, ask the model, and leave; a run is added every two minutes, and
every five something is killed in turn: a run, the supervisor, the process that answers. Every ten
seconds each process is asked for its memory, open files and threads, the database for its rows,
the folder for its size, and pages for their time. `--runs`: so many simulated ones are there from
the beginning, copies of one real run; what reads all of them is timed once at the end. Beginning
and end are medians of a tenth of the time, and at least three samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from backend.queue import scheduling
from backend.queue.actor import Actor
from backend.queue.engines.local import LocalEngine
from backend.queue.removal import folder_bytes, free_expired
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.session import reading
from backend.store.states import State
from backend.store.tables import Table as Rows
from benchmarks.dashboard import FOLLOWED, TABLE, drawn, filtered, visitor
from benchmarks.scale.storm import running
from benchmarks.screen.load import many_runs
from benchmarks.screen.runs import SDS, carry_out
from benchmarks.screen.server import Dashboard, chromium, dashboard, reads
from jobs.submit import submit

COMMAND = [sys.executable, "-m", "jobs"]
ME = Actor("soak", "host")
RUN = {"model": "toy", "segments": 4, "context": 64, "windows": 4, "threads": 1}
PARTS = {
    "jobs.runtime.main": "run",
    "backend.queue.supervisor": "supervisor",
    "jobs.serving.main": "answers",
}
SAMPLE_S, GUEST_S, RUN_S, KILL_S = 10.0, 30.0, 120.0, 300.0
PAGES = ("", "runs", "slimscope/pulse", "metrics")
FORWARDED = {"X-Forwarded-For": "203.0.113.{}"}  # a proxy says so of guests
Sample = dict[str, float]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--runs", type=int, default=0, help="simulated, there from the beginning")
    return parser.parse_args()


def guest(url: str, number: int) -> int:
    """One who comes, looks at pages, asks the model, and leaves; the tokens that came."""
    sent_by = {name: value.format(number % 250 + 1) for name, value in FORWARDED.items()}
    asked = {"model": "toy", "prompt": "Once upon a time", "max_tokens": 32}
    with httpx.Client(base_url=url, headers=sent_by, timeout=60, trust_env=False) as client:
        for path in PAGES[:3]:
            client.get(f"/{path}").raise_for_status()
        with suppress(httpx.HTTPError, KeyError, ValueError):  # the process that answers was killed
            answer = client.post("/v1/completions", json=asked).raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])
    return 0


def sample(shown: Dashboard, data: Path) -> Sample:
    """What there is now."""
    found: Sample = {}
    processes = {"dashboard": [shown.process]}
    processes |= {name: running(data, module) for module, name in PARTS.items()}
    for name, those in processes.items():
        with suppress(psutil.Error):
            for process in those[:1]:
                found[f"{name}, MB"] = process.memory_info().rss / 1e6
                found[f"{name}, open files"] = process.num_fds()
                found[f"{name}, threads"] = process.num_threads()
    with reading() as session:
        counts = [select(func.count()).select_from(t) for t in Rows.metadata.sorted_tables]
        found["rows"] = sum(session.scalar(count) or 0 for count in counts)
    found["data folder, MB"] = folder_bytes(data) / 1e6
    with httpx.Client(base_url=shown.url, timeout=120, trust_env=False) as client:
        for path in PAGES:
            began = time.monotonic()
            client.get(f"/{path}").raise_for_status()
            found[f"/{path}, ms"] = 1000 * (time.monotonic() - began)
    return found


class Day:
    """Acts when it is their time, and keeps the samples."""

    def __init__(self, shown: Dashboard, data: Path) -> None:
        self.shown, self.data = shown, data
        self.samples: list[Sample] = []
        self.runs: list[int] = []
        self.tokens, self.guests, self.killed = 0, itertools.count(), list[str]()
        self._victims = itertools.cycle(PARTS)
        self._acts: dict[Callable[[], None], tuple[float, float]] = {
            self._look: (0.0, SAMPLE_S),
            self._ask: (5.0, GUEST_S),
            self._add: (0.0, RUN_S),
            self._kill: (KILL_S / 2, KILL_S),
        }

    def _look(self) -> None:
        self.samples.append(sample(self.shown, self.data))
        print(json.dumps(self.samples[-1]), file=sys.stderr, flush=True)

    def _ask(self) -> None:
        self.tokens += guest(self.shown.url, next(self.guests))

    def _add(self) -> None:
        self.runs.append(submit("sds", RUN | {"seed": len(self.runs)}, ME).id)

    def _kill(self) -> None:
        module = next(self._victims)
        for process in running(self.data, module)[:1]:
            with suppress(psutil.Error):
                process.kill()
                self.killed.append(PARTS[module])

    def live(self, minutes: float, meanwhile: Callable[[float], None]) -> None:
        """Act until the time is over. `meanwhile` waits so many milliseconds."""
        began = time.monotonic()
        due = {act: began + first for act, (first, _) in self._acts.items()}
        while time.monotonic() - began < 60 * minutes:
            for act, (_, every) in self._acts.items():
                if time.monotonic() >= due[act]:
                    act()
                    due[act] = max(due[act] + every, time.monotonic())
            meanwhile(500)
        while any(queries.job(run).state not in (State.SUCCEEDED, State.LOST) for run in self.runs):
            meanwhile(500)


@contextmanager
def looked_at(shown: Dashboard, browsers: int) -> Iterator[Callable[[float], None]]:
    """Open pages, and what waits while they live."""
    with chromium() as browser:
        pages = [browser.new_page() for _ in range(browsers)]
        for number, page in enumerate(pages):
            page.goto(f"{shown.url}/{FOLLOWED[number % len(FOLLOWED)]}", timeout=120_000)
        yield pages[0].wait_for_timeout


def ends(samples: list[Sample]) -> dict[str, tuple[float, float]]:
    """Of each figure the median of the beginning and of the end."""
    part, names = max(3, len(samples) // 10), dict.fromkeys(itertools.chain(*samples))
    taken = {name: [each[name] for each in samples if name in each] for name in names}
    return {name: (median(of[:part]), median(of[-part:])) for name, of in taken.items()}


def many(shown: Dashboard) -> Sample:
    """Seconds of what reads all runs."""
    with chromium() as browser, visitor(browser) as page:
        found = {"Runs, a new browser": drawn(page, shown.url, TABLE)}
        found["Runs, again"] = drawn(page, shown.url, TABLE)
        found["a filter typed on Runs"] = median(filtered(page, shown.url)) / 1000
    acts: dict[str, Callable[[], object]] = {
        name: lambda words=words: subprocess.run(
            [*COMMAND, *words], check=True, stdout=subprocess.DEVNULL
        )
        for name, words in {"slimscope list": ["list"], "slimscope disk": ["disk"]}.items()
    }
    acts["state of the queue"] = scheduling.status
    acts["start of a supervisor"] = SupervisorLoop(LocalEngine(1)).clear
    acts["deleting expired checkpoints"] = free_expired
    acts["search in the header"] = lambda: httpx.get(f"{shown.url}/slimscope/search?q=copy+5")
    for name, act in acts.items():
        began = time.monotonic()
        act()
        found[name] = time.monotonic() - began
    return found


def main() -> None:
    asked, out = arguments(), Console()
    with TemporaryDirectory(prefix="slimscope-soak-") as folder, reads(Path(folder)):
        data = Path(folder)
        os.environ |= {"SLIMSCOPE_EXAMPLES": "false", "SLIMSCOPE_IDLE_EXIT": "600"}
        carry_out(data, [SDS])
        if asked.runs:
            many_runs(asked.runs)
        with dashboard(data) as shown:
            day = Day(shown, data)
            with looked_at(shown, asked.browsers) as wait:
                day.live(asked.minutes, wait)
            all_runs = many(shown) if asked.runs else {}
        for process in [each for module in PARTS for each in running(data, module)]:
            process.kill()
        states = Counter(str(queries.job(run).state) for run in day.runs)
    found = ends(day.samples[1:])  # the first came before every page was loaded
    table = Table("figure", "at the beginning", "at the end", "more")
    for name, (first, last) in found.items():
        table.add_row(name, f"{first:.0f}", f"{last:.0f}", f"{last - first:+.0f}")
    out.print(table, f"{len(day.runs)} runs: {dict(states)}; killed: {', '.join(day.killed)}")
    out.print(f"{next(day.guests)} guests got {day.tokens} tokens")
    for name, seconds in all_runs.items():
        out.print(f"{name}: {seconds:.2f} s")
    print(
        json.dumps({name: [round(v, 1) for v in pair] for name, pair in found.items()} | all_runs)
    )


if __name__ == "__main__":
    main()
