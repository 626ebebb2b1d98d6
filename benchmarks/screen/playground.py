"""The playground: how long the first token takes, and how fast several answers are written at once.

    make bench-screen.playground
    make bench-screen.playground ARGS="--model toy --repeats 3"

In a scratch folder, through the queue as a page would ask, on this machine: the time from sending a
prompt to its first token, with no process and no model there (cold), with both (warm), and warm
going on with a conversation and while a job trains; and the tokens per second of 1, 2 and 4 answers
of one run. Other work on the machine makes all of it slower.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from statistics import median
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from backend.queue import service
from backend.queue.actor import Actor
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.serving.transcript import file_of, read_transcript
from jobs.submit import submit

HOST = Actor("benchmark", "host")
PROMPT = "Explain in three sentences why the sky is blue."
TRAINING = {"model": "toy", "steps": 100_000}
LOOK_S, TOKENS = 0.005, 48
NUMBERS = count()


def ask(model: str, sides: int = 1, follows: str = "") -> tuple[float, list[float], str]:
    """Seconds to the first token of the side that is last, tokens per second of each side, and the
    run."""
    began, number = time.perf_counter(), next(NUMBERS)
    config = {"sides": ", ".join([model] * sides), "max_new_tokens": TOKENS, "follows": follows}
    prompt = f"{number}. {PROMPT}"  # of which nothing has been read before
    job = submit("generate", {**config, "prompt": prompt}, HOST)
    every = range(1, sides + 1)
    while not all(has_begun(job, side) for side in every):
        assert queries.job(job.id).state in ACTIVE, queries.job(job.id).error_text
        time.sleep(LOOK_S)
    first = time.perf_counter() - began
    while queries.job(job.id).state in ACTIVE:
        time.sleep(0.05)
    return first, [read_transcript(job.run, side).speed or 0.0 for side in every], job.run


def has_begun(job: Job, side: int) -> bool:
    """Whether a side has written its first token."""
    file = file_of(job.run, side)
    return file.exists() and '"tokens"' in file.read_text("utf-8")


@contextmanager
def training() -> Iterator[Job]:
    """A job that trains on all cores while the body runs."""
    job = submit("dlqat", TRAINING, HOST)
    while not queries.curve_rows(job.run):
        assert queries.job(job.id).state in ACTIVE, queries.job(job.id).error_text
        time.sleep(0.5)
    yield job
    service.cancel(job.run, HOST)
    while queries.job(job.id).state in ACTIVE:
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    table = Table("what", "first token, s", "tokens/s of each answer", "in all")
    with TemporaryDirectory() as folder:
        os.environ |= {
            "SLIMSCOPE_DATA_DIR": folder, "SLIMSCOPE_IDLE_EXIT": "5",
        }  # fmt: skip
        settings.cache_clear()
        upgrade()
        add(table, "cold", [ask(given.model)])
        for sides in (1, 2, 4):
            name = f"warm, {sides} at once" if sides > 1 else "warm"
            add(table, name, [ask(given.model, sides) for _ in range(given.repeats)])
        found = [ask(given.model)]
        for _ in range(given.repeats):
            found.append(ask(given.model, follows=found[-1][2]))
        add(table, "warm, goes on with a conversation", found[1:])
        with training():
            found = [ask(given.model) for _ in range(given.repeats)]
            add(table, "warm, while a job trains", found)
    Console().print(table)


def add(table: Table, name: str, found: list[tuple[float, list[float], str]]) -> None:
    """A line of medians."""
    first = median(seconds for seconds, _, _ in found)
    each = median(sum(speeds) / len(speeds) for _, speeds, _ in found)
    every = median(sum(speeds) for _, speeds, _ in found)
    print(name, f"{first:.2f} s, {each:.1f} tokens/s", flush=True)
    table.add_row(name, f"{first:.2f}", f"{each:.1f}", f"{every:.1f}")


if __name__ == "__main__":
    main()
