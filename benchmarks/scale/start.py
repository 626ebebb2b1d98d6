"""How soon a run says what it does, and what it has done: in a process started for it, and in one
that was there before, in turn. Each run is cancelled then. Median seconds since its launch.

python -m benchmarks.scale.start --times 5
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from statistics import median

from backend.queue import service
from backend.queue.engines.local import LocalEngine
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import TERMINAL
from benchmarks.scale.queueing import ME, until
from jobs.kind import kind_named
from jobs.submit import submit

IMPORTS_S = 8.0  # the process that is there before has taken this long at most


def start(loop: SupervisorLoop, kind: str, values: dict[str, object]) -> tuple[float, float]:
    """Seconds from the launch of a run to its first step, and to its first figure of progress."""
    job = submit(kind, values, ME)
    seen: list[float] = []
    for is_there in (
        lambda: queries.job(job.id).stage not in (None, "", "starting"),
        lambda: (queries.job(job.id).done or 0) > 0,
    ):
        until(loop, is_there)
        seen.append(time.time() - queries.attempts(job.id)[-1].launched_at / 1000)
    service.cancel(job.id, ME)
    until(loop, lambda: queries.job(job.id).state in TERMINAL)
    return seen[0], seen[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--kind", default="sds")
    parser.add_argument("--model", default="smollm2-135m")
    given = parser.parse_args()
    values = {"model": given.model, **kind_named(given.kind).preset("quick look")}
    service.wake_supervisor = lambda: None  # this process is the one that supervises
    found: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory(prefix="ss-") as folder:
        os.environ["SLIMSCOPE_DATA_DIR"] = folder
        upgrade()
        loop = SupervisorLoop(LocalEngine(1))
        for _ in range(given.times):
            found["cold"].append(start(loop, given.kind, values))
            service.expect_run(ME)
            loop.prepare()
            time.sleep(IMPORTS_S)
            found["warm"].append(start(loop, given.kind, values))
    for how, each in found.items():
        steps, figures = (sorted(round(pair[n], 2) for pair in each) for n in (0, 1))
        print(
            f"{how}: step {median(steps):.2f} s {steps}, figure {median(figures):.2f} s {figures}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
