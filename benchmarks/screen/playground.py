"""The process that answers: how long the first token takes, and how fast several texts are written.

    make bench-screen.playground
    make bench-screen.playground ARGS="--model toy --repeats 3"

In a scratch folder, through the socket as the dashboard asks, on this machine: the time from
sending a prompt to its first token, with no process and no model there (cold), with both (warm),
going on with a conversation, while a job trains, and for 4, 8 and 30 people at once; and the tokens
per second of each and of all. Other work on the machine makes all of it slower.
"""

import argparse
import asyncio
import json
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
from jobs.serving.client import sent
from jobs.submit import submit

HOST = Actor("benchmark", "host")
PROMPT = "Explain in three sentences why the sky is blue."
TRAINING = {"model": "toy", "steps": 100_000}
TOKENS = 96
NUMBERS = count()

Measured = tuple[float, float]  # seconds to the first token, tokens per second behind it


async def ask(model: str, said: list[dict[str, str]]) -> tuple[Measured, str]:
    """What one answer took, and its text."""
    began = first = time.perf_counter()
    body = {
        "model": model,
        "messages": said,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    text, tokens = "", 0
    person = Actor(f"person {next(NUMBERS)}", "host")
    async with sent("/v1/chat/completions", json.dumps(body).encode(), person) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                text += choices[0]["delta"].get("content", "")
                tokens += choices[0]["finish_reason"] is None
                first = time.perf_counter() if tokens == 2 else first  # the first is the role
    return (first - began, (tokens - 2) / (time.perf_counter() - first)), text


def said(before: str = "") -> list[dict[str, str]]:
    """A prompt of which nothing has been read before, or one that goes on with an answer."""
    if before:
        return [*said(), {"role": "assistant", "content": before}, *said()]
    return [{"role": "user", "content": f"{next(NUMBERS)}. {PROMPT}"}]


def people(model: str, number: int) -> list[Measured]:
    """What so many people measure who ask at once."""

    async def together() -> list[Measured]:
        return [
            each for each, _ in await asyncio.gather(*(ask(model, said()) for _ in range(number)))
        ]

    return asyncio.run(together())


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
    table = Table("what", "first token, s", "slowest", "tokens/s of each answer", "in all")
    with TemporaryDirectory() as folder:
        os.environ |= {"SLIMSCOPE_DATA_DIR": folder, "SLIMSCOPE_IDLE_EXIT": "5"}
        settings.cache_clear()
        upgrade()
        add(table, "cold", people(given.model, 1))
        add(table, "warm", [each for _ in range(given.repeats) for each in people(given.model, 1)])
        text = asyncio.run(ask(given.model, said()))[1]
        more = [asyncio.run(ask(given.model, said(text)))[0] for _ in range(given.repeats)]
        add(table, "warm, goes on with a conversation", more)
        for number in (4, 8, 30):
            add(table, f"{number} at once", people(given.model, number), number)
        with training():
            alone = [each for _ in range(given.repeats) for each in people(given.model, 1)]
            add(table, "warm, while a job trains", alone)
    Console().print(table)


def add(table: Table, name: str, found: list[Measured], together: int = 1) -> None:
    """A line of medians."""
    first, speed = median(f for f, _ in found), median(s for _, s in found)
    row = (
        f"{first:.2f}",
        f"{max(f for f, _ in found):.2f}",
        f"{speed:.1f}",
        f"{speed * together:.1f}",
    )
    print(name, *row, flush=True)
    table.add_row(name, *row)


if __name__ == "__main__":
    main()
