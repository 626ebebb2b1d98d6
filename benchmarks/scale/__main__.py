"""What more places for runs are worth on this machine.

    make bench-scale
    make bench-scale ARGS="--jobs 8 --places 1 2"
    SLIMSCOPE_TEST_RAY=1 .venv/bin/python -m tests.postgres .venv/bin/python -m benchmarks.scale

Runs a minute and seconds from submission to first progress, with 1, 2 and 4 places; with
SLIMSCOPE_TEST_RAY, on a Ray cluster of as many nodes on this machine, too. Each measurement runs in
a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scale import queueing

RAY = "SLIMSCOPE_TEST_RAY"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--jobs", type=int, default=12, help="queued at once")
    parser.add_argument("--probes", type=int, default=3, help="runs one after the other")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
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


def shown(queued: list[dict[str, Any]]) -> None:
    runs = Table("engine", "places", "runs a minute", "s to first progress")
    for f in queued:
        figures = f"{f['per minute']:.1f}", f"{f['first progress']:.2f}"
        runs.add_row(f["engine"], str(f["places"]), *figures)
    Console().print(runs)


def main() -> None:
    asked = arguments()
    if asked.engine:
        (places,) = asked.places
        print(json.dumps(queueing.measure(asked.engine, places, asked.jobs, asked.probes)))
        return
    queued = queues(asked)
    shown(queued)
    print(json.dumps({"queue": queued}))


if __name__ == "__main__":
    main()
