"""What more places for runs, and more processes for one run, are worth on this machine.

    make bench-scale
    make bench-scale ARGS="--jobs 8 --places 1 2"
    SLIMSCOPE_TEST_RAY=1 .venv/bin/python -m tests.postgres .venv/bin/python -m benchmarks.scale

- queue: runs a minute and seconds from submission to first progress, with 1, 2 and 4 places; with
  SLIMSCOPE_TEST_RAY, on a Ray cluster of as many nodes on this machine, too.
- training: time of a step of DL-QAT on one process with one thread, on one with all cores and on
  several that share them, and how far the losses differ from those of the first. The model is
  random, of LLaMA's shape, with 25 million weights.

Each part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.settings import available_threads
from benchmarks.scale import queueing, training

RAY = "SLIMSCOPE_TEST_RAY"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--jobs", type=int, default=12, help="queued at once")
    parser.add_argument("--probes", type=int, default=3, help="runs one after the other")
    parser.add_argument("--processes", type=int, default=2, help="that train together")
    parser.add_argument("--part", choices=["queue", "training"], help="only this one")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def queue(asked: argparse.Namespace, engine: str, places: int) -> dict[str, Any]:
    """A measurement of the queue, in a process with settings of its own."""
    line = [sys.executable, "-m", "benchmarks.scale", "--engine", engine, "--places", str(places)]
    line += ["--jobs", str(asked.jobs), "--probes", str(asked.probes)]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def queues(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The queue with each number of places, on each engine there is."""
    engines = ["local", "ray"] if os.environ.get(RAY) else ["local"]
    return [queue(asked, engine, places) for engine in engines for places in asked.places]


def trainings(processes: int) -> list[dict[str, Any]]:
    """A training each way, with the largest relative difference of its losses from the first."""
    cores = available_threads()
    ways = dict.fromkeys([(1, 1), (1, cores), (processes, max(1, cores // processes))])
    trained = [training.measure(*way) for way in ways]
    alone = trained[0]["losses"]
    for f in trained:
        pairs = zip(f.pop("losses"), alone, strict=True)
        f["differs"] = max(abs(one - other) / other for one, other in pairs)
    return trained


def shown(queued: list[dict[str, Any]], trained: list[dict[str, Any]]) -> None:
    runs = Table("engine", "places", "runs a minute", "s to first progress")
    for f in queued:
        figures = f"{f['per minute']:.1f}", f"{f['first progress']:.2f}"
        runs.add_row(f["engine"], str(f["places"]), *figures)
    steps = Table(
        "processes", "threads of each", "ms a step", "CPU ms a step", "largest difference of a loss"
    )
    for f in trained:
        steps.add_row(
            str(f["processes"]),
            str(f["threads"]),
            f"{f['ms']:.0f}",
            f"{f['CPU ms']:.0f}",
            f"{f['differs']:.1e}",
        )
    Console().print(*(table for table in (runs, steps) if table.row_count))


def main() -> None:
    asked = arguments()
    if asked.work:
        print(json.dumps(training.work(asked.number, asked.world, asked.threads, asked.work)))
        return
    if asked.engine:
        (places,) = asked.places
        print(json.dumps(queueing.measure(asked.engine, places, asked.jobs, asked.probes)))
        return
    queued = queues(asked) if asked.part != "training" else []
    trained = trainings(asked.processes) if asked.part != "queue" else []
    shown(queued, trained)
    print(json.dumps({"queue": queued, "training": trained}))


if __name__ == "__main__":
    main()
