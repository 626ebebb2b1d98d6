"""A room of people who ask the dashboard through the OpenAI API over HTTP, again and again, while
somebody looks at its pages.

    make bench-scale.room
    make bench-scale.room ARGS="--clients 50 --minutes 10 --think 4"
    make bench-scale.room ARGS="--clients 8 --think 0 --beside sds"

Each client asks with a prompt of its own, reads the stream to its end, thinks (on average
`--think` seconds, exponentially distributed), and asks again; one in `--leaves` closes the
connection in the middle. Told are answers, tokens a second of all together, seconds to the first
token and milliseconds between two (median, 95th percentile), answers that were lost (no end and no
error) or refused, seconds that pages took, and memory of the dashboard and of the serving process
after the first minute and at the end. Clients, dashboard and engine share the processor. With
`--beside`, a run of that kind, its quick look, works first alone, and then while people ask, who do
so until it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from backend.queue.actor import Actor
from benchmarks.runs import account, finish
from benchmarks.scale.storm import ours
from benchmarks.screen.server import dashboard, reads
from benchmarks.shared.timing import p95
from jobs.kind import kind_named
from jobs.submit import submit

ME = Actor("benchmark", "host")
PAGES = ("runs", "playground", "new", "weights")
PAGE_EVERY_S = 5.0
WORDS = ("dog", "river", "kite", "winter", "bread", "island", "music", "garden", "letter", "clock")


@dataclass
class Seen:
    """What clients saw, who ask `until` then; times in seconds."""

    until: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    tokens: int = 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--think", type=float, default=4.0, help="seconds between two questions")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--beside", default="", help="kind of a run that works meanwhile")
    parser.add_argument("--leaves", type=int, default=20, help="one in so many leaves early")
    return parser.parse_args()


async def ask(client: httpx.AsyncClient, chosen: argparse.Namespace, seen: Seen) -> str:
    """One question; how it ended."""
    prompt = " ".join(random.choices(WORDS, k=30)) + ". Tell a story of all of these."
    body = {
        "model": chosen.model,
        "max_tokens": chosen.new,
        "stream": True,
        "temperature": 0.8,
        "messages": [{"role": "user", "content": prompt}],
    }
    leaves, asked, stamps = random.randrange(chosen.leaves) == 0, time.monotonic(), list[float]()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return f"refused ({response.status_code})"
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                break
            found = json.loads(line.removeprefix("data: "))
            if "error" in found:
                return "error"
            if found["choices"] and found["choices"][0]["delta"].get("content"):
                stamps.append(time.monotonic())
                if leaves and len(stamps) > 5:
                    return "left"
        else:
            return "lost"
    if stamps:
        seen.first.append(stamps[0] - asked)
        seen.between += [b - a for a, b in pairwise(stamps)]
        seen.tokens += len(stamps)
    return "answered"


async def person(url: str, chosen: argparse.Namespace, seen: Seen) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        await asyncio.sleep(random.random() * chosen.think)
        while time.monotonic() < seen.until:
            try:
                seen.ends[await ask(client, chosen, seen)] += 1
            except httpx.HTTPError as error:
                seen.ends[f"lost ({type(error).__name__})"] += 1
            pause = random.expovariate(1) * chosen.think
            await asyncio.sleep(min(pause, max(0.0, seen.until - time.monotonic())))


async def onlooker(url: str, seen: Seen) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        while time.monotonic() < seen.until:
            for page in PAGES:
                began = time.monotonic()
                (await client.get(f"/{page}")).raise_for_status()
                seen.pages.append(time.monotonic() - began)
            await asyncio.sleep(PAGE_EVERY_S)


def memory(data: Path) -> dict[str, float]:
    """MB of the processes of a data folder, by what they run."""
    found: dict[str, float] = {}
    for process in ours(data):
        try:
            line = process.cmdline()
            name = "engine" if "jobs.serving.main" in line else Path(line[1]).stem
            found[name] = found.get(name, 0) + process.memory_info().rss / 1e6
        except (psutil.Error, IndexError):
            continue
    return found


def worked(chosen: argparse.Namespace) -> float:
    """Seconds of a run's quick look, from its start to its end."""
    values = {**kind_named(chosen.beside).presets["quick look"], "model": chosen.model}
    return float(account(finish(submit(chosen.beside, values, ME)))["seconds"])


async def measured(url: str, data: Path, chosen: argparse.Namespace) -> dict[str, object]:
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        await ask(client, argparse.Namespace(**vars(chosen) | {"leaves": 10**9}), Seen())  # loads
    run_s = [await asyncio.to_thread(worked, chosen)] if chosen.beside else []
    began = time.monotonic()
    seen = Seen(math.inf if chosen.beside else began + 60 * chosen.minutes)
    tasks = [asyncio.create_task(person(url, chosen, seen)) for _ in range(chosen.clients)]
    tasks.append(asyncio.create_task(onlooker(url, seen)))
    await asyncio.sleep(0 if chosen.beside else min(60.0, 30 * chosen.minutes))
    early = memory(data)
    if chosen.beside:
        run_s.append(await asyncio.to_thread(worked, chosen))
        seen.until = time.monotonic()
    await asyncio.sleep(seen.until - time.monotonic())  # then the engine may end
    late = memory(data)
    await asyncio.gather(*tasks)
    seconds = time.monotonic() - began
    return {
        "clients": chosen.clients,
        "seconds": round(seconds),
        "run_s": run_s,
        "ends": dict(seen.ends),
        "tokens_s": seen.tokens / seconds,
        "first_s": [median(seen.first), p95(seen.first)],
        "between_ms": [1e3 * median(seen.between), 1e3 * p95(seen.between)],
        "pages_s": [median(seen.pages), p95(seen.pages)],
        "memory_mb": {name: [early.get(name, 0.0), mb] for name, mb in late.items()},
    }


def main() -> None:
    chosen = arguments()
    with TemporaryDirectory() as folder, dashboard(Path(folder)) as shown, reads(Path(folder)):
        found = asyncio.run(measured(shown.url, Path(folder), chosen))
    table = Table(
        "",
        "median",
        "p95",
        title=f"{chosen.clients} people, {chosen.model}: {found['tokens_s']:.0f} tokens/s together",
    )
    for name in ("first_s", "between_ms", "pages_s"):
        low, high = found[name]  # type: ignore[misc]
        table.add_row(name, f"{low:.2f}", f"{high:.2f}")
    if chosen.beside:
        table.add_row(f"{chosen.beside}, s: alone, beside", *(f"{x:.0f}" for x in found["run_s"]))  # type: ignore[attr-defined]
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
