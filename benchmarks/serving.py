"""Many who ask at the same time: our engine, and llama.cpp, one after the other.

    make bench-serving
    make bench-serving ARGS="--streams 1 8 32 --gguf model.gguf --only 'engine, 4 bits' llama.cpp"
    make bench-serving ARGS="--crowd"

All streams ask at once, each with a prompt of its own and for an answer of the same length,
greedily and without drafts. Told are tokens a second of all together, from the first request to the
last token, and a second of processor time, which other programs disturb less; seconds to the first
token (median and 95th percentile); milliseconds between two tokens of a stream (95th percentile);
and how much memory the process grew by, at most.

The weights in 4 bits are rounded to nearest, in groups of 64, with a head in 8 bits: their speed is
that of any. llama.cpp (pip install llama-cpp-python, built for this processor) reads the same model
from a GGUF file, which it converts to bfloat16 and to Q4_0; it is driven as its own server does:
each pass has the next token of every stream that writes, and prompts up to 512 tokens.

--crowd (Linux): a dashboard with the toy model; at one address thirty visitors who ask and vote,
then one visitor with 80 connections. Told are seconds to the first token of a visitor at another
address, and milliseconds to an answer of /healthz, asked every 10 ms while bodies of many values
are sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from tempfile import TemporaryDirectory
from typing import Protocol

import httpx
import torch
from rich.console import Console
from rich.table import Table

from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.request import Event, Finished, GenerationRequest, NewPieces
from backend.decoding.target_model import TargetModel
from backend.models.loading import LoadedModel, load
from backend.queue.actor import Actor
from backend.text.slices import evaluation_slice
from benchmarks.decoding import quantized
from benchmarks.peers import llama
from benchmarks.screen.server import dashboard, reads
from benchmarks.shared import memory
from benchmarks.shared.timing import p95
from jobs.chat import ask

CACHES = 2**32  # bytes, more than is needed
Prompts = Sequence[Sequence[int]]
Stamps = list[list[float]]  # of each stream, seconds from the request to each of its tokens


class Server(Protocol):
    """Answers many at once. One that is reached by HTTP is a further class like this."""

    def serve(self, prompts: Prompts, new: int) -> Stamps:
        """Answer all prompts with `new` tokens each."""

    def close(self) -> None: ...


class OwnEngine:
    """`backend.decoding.serving`, called directly."""

    def __init__(self, target: TargetModel, loaded: LoadedModel, threads: int) -> None:
        self._engine = ServingEngine(
            target, loaded.tokenizer, memory=CACHES, threads=lambda: threads
        )

    def serve(self, prompts: Prompts, new: int) -> Stamps:
        start, ended = time.perf_counter(), SimpleQueue[Finished]()
        stamps: Stamps = [[] for _ in prompts]

        def receiver(own: list[float]) -> Callable[[Event], None]:
            def receive(event: Event) -> None:
                if isinstance(event, NewPieces):
                    own.extend([time.perf_counter() - start] * len(event.pieces))
                elif isinstance(event, Finished):
                    ended.put(event)

            return receive

        for number, (prompt, own) in enumerate(zip(prompts, stamps, strict=True)):
            request = GenerationRequest(tuple(prompt), new, person=str(number))
            self._engine.submit(request, receiver(own))
        for _ in prompts:
            if error := ended.get().error:
                raise error
        return stamps

    def close(self) -> None:
        self._engine.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--streams", default=[1, 8, 32, 64], type=int, nargs="*")
    parser.add_argument("--prompt", default=200, type=int, help="tokens of a prompt")
    parser.add_argument("--new", default=128, type=int, help="tokens of an answer")
    parser.add_argument("--crowd", action="store_true", help="at a dashboard")
    parser.add_argument("--gguf", type=Path, help="of the same model, for llama.cpp")
    parser.add_argument("--only", nargs="*", default=[], help="servers, by how their names begin")
    return parser.parse_args()


def openers(chosen: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Server]]:
    """Name -> what opens a server."""

    def ours(packed: bool) -> Server:
        loaded = load(chosen.model, dtype=torch.float32 if packed else torch.bfloat16)
        model = quantized(loaded.model, 4) if packed else loaded.model
        return OwnEngine(TargetModel(model), loaded, chosen.threads)

    found: dict[str, Callable[[], Server]] = {
        "engine, bf16": lambda: ours(packed=False),
        "engine, 4 bits": lambda: ours(packed=True),
    }
    if chosen.gguf:
        room = max(chosen.streams) * (chosen.prompt + chosen.new)
        for name, path in llama.formats(chosen.gguf, scratch, chosen.threads):
            found[f"llama.cpp, {name}"] = lambda path=path: llama.LlamaStreams(
                path, max(chosen.streams), room, chosen.threads
            )
    wanted = tuple(chosen.only) or ("",)
    return {name: opened for name, opened in found.items() if name.startswith(wanted)}


def prompts_of(chosen: argparse.Namespace) -> dict[int, Prompts]:
    """By the number of streams, prompts of which no two begin alike."""
    loaded = load(chosen.model, dtype=torch.bfloat16)
    count = sum(chosen.streams)
    text = evaluation_slice(loaded.facts.default_text, loaded.tokenizer, count, chosen.prompt)
    rows = iter([[100 + n, *row[1:]] for n, row in enumerate(text.input_ids.tolist())])
    return {streams: [next(rows) for _ in range(streams)] for streams in chosen.streams}


def measured(server: Server, prompts: Prompts, new: int) -> dict[str, float]:
    memory.forget_peak()
    before, processor = memory.held(), time.process_time()
    stamps = server.serve(prompts, new)
    processor, tokens = time.process_time() - processor, sum(map(len, stamps))
    first = [own[0] for own in stamps]
    between = [b - a for own in stamps for a, b in pairwise(own)]
    return {
        "tokens_s": tokens / max(own[-1] for own in stamps),
        "tokens_cpu_s": tokens / processor,
        "first_p50": median(first),
        "first_p95": p95(first),
        "between_ms_p95": 1e3 * p95(between),
        "mb": (memory.peak() - before) / 2**20,
    }


# a crowd at one address ---------------------------------------------------------------------------

TOKEN = "a-token-of-the-benchmark"
CROWDED, ELSEWHERE, PROBE = "127.0.0.40", "127.0.0.50", "127.0.0.60"
ASKED = {"model": "toy", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 64}
CHAT, VOTE = "/v1/chat/completions", "/slimscope/api/chats/{}/vote?choice=1"
VALUES = b"[" + b"1," * 300_000 + b"1]"


def visitor(url: str, address: str, role: str = "guest") -> httpx.AsyncClient:
    """Somebody at this address of the loopback network, with a jar of cookies."""
    way = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits())
    headers = {"authorization": f"Bearer {TOKEN}"} if role == "host" else {}
    return httpx.AsyncClient(transport=way, base_url=url, headers=headers, timeout=120)


async def first_token(client: httpx.AsyncClient, path: str = CHAT, **query: int) -> float:
    """Seconds to the first token of an answer that is read to its end; NaN where it is refused."""
    began, seconds = time.perf_counter(), float("nan")
    body = ASKED | {"stream": True}
    async with client.stream("POST", path, json=body, params=query) as answer:
        async for line in answer.aiter_lines():
            if '"content"' in line or '"tokens"' in line:
                seconds = min(seconds, time.perf_counter() - began, key=lambda s: (s != s, s))
    return seconds


async def comes_back(client: httpx.AsyncClient, number: int) -> None:
    """Asks and votes, again and again."""
    await client.get("/playground")
    while True:
        await first_token(client)
        await client.post(VOTE.format(number))


async def pings(client: httpx.AsyncClient, milliseconds: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await client.get("/healthz")
        milliseconds.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.01)


async def crowded(url: str, number: int) -> list[dict[str, object]]:
    """The figures; `number`: of an answered prompt."""
    rows, other = list[dict[str, object]](), visitor(url, ELSEWHERE)
    await other.get("/playground")
    await first_token(other)
    one = visitor(url, CROWDED)
    for name, clients in {
        "thirty visitors": [visitor(url, CROWDED) for _ in range(30)],
        "one with 80 connections": [one] * 80,
    }.items():
        crowd = [asyncio.create_task(comes_back(each, number)) for each in clients]
        await asyncio.sleep(5)
        seconds = [await first_token(other) for _ in range(2)]
        for task in crowd:
            task.cancel()
        await asyncio.wait(crowd)
        rows.append({"crowd": name, "first_token_s": seconds})
    milliseconds = list[float]()
    probe = asyncio.create_task(pings(visitor(url, PROBE), milliseconds))
    for path in (CHAT, "/v1/completions", "/slimscope/workbench/live", "/slimscope/api/sweeps/sds"):
        for _ in range(5):
            await one.post(path, content=VALUES)
    probe.cancel()
    return [*rows, {"healthz_ms_p50": median(milliseconds), "healthz_ms_max": max(milliseconds)}]


async def answered_prompt(url: str, number: int) -> None:
    host = visitor(url, PROBE, "host")
    for side in (1, 2):
        await first_token(host, "/slimscope/answer", prompt=number, side=side)


def crowd() -> None:
    with TemporaryDirectory() as folder, reads(Path(folder)):
        os.environ |= {"SLIMSCOPE_HOST_TOKEN": TOKEN, "SLIMSCOPE_EXAMPLES": "0"}
        with dashboard(Path(folder)) as served:
            asked = {"prompt": "Once upon a time", "sides": "toy, toy"}
            number = ask(asked, blind=False, actor=Actor("benchmark", "host"))
            asyncio.run(answered_prompt(served.url, number))
            for row in asyncio.run(crowded(served.url, number)):
                print(json.dumps(row))


def main() -> None:
    chosen = arguments()
    if chosen.crowd:
        crowd()
        return
    torch.set_num_threads(chosen.threads)
    prompts, rows = prompts_of(chosen), list[dict[str, object]]()
    table = Table(
        title=f"{chosen.model}, {chosen.threads} thread(s), prompts of {chosen.prompt}, "
        f"answers of {chosen.new}"
    )
    for head in (
        "server",
        "streams",
        "tokens/s",
        "of CPU",
        "× one",
        "first p50 s",
        "p95 s",
        "between p95 ms",
        "MB",
    ):
        table.add_column(head, justify="left" if head == "server" else "right")
    with TemporaryDirectory() as scratch:
        for name, opened in openers(chosen, Path(scratch)).items():
            server, one = opened(), float("nan")
            server.serve([[5, 6, 7]], 8)  # warms up
            for streams in chosen.streams:
                found = measured(server, prompts[streams], chosen.new)
                one = found["tokens_cpu_s"] if streams == 1 else one
                rows.append({"server": name, "streams": streams, **found})
                print(json.dumps(rows[-1]), file=sys.stderr)
                table.add_row(
                    name,
                    str(streams),
                    f"{found['tokens_s']:.0f}",
                    f"{found['tokens_cpu_s']:.0f}",
                    f"{found['tokens_cpu_s'] / one:.1f}",
                    f"{found['first_p50']:.2f}",
                    f"{found['first_p95']:.2f}",
                    f"{found['between_ms_p95']:.0f}",
                    f"{found['mb']:.0f}",
                )
            server.close()
    Console(width=120).print(table)
    print(json.dumps({"threads": chosen.threads, "rows": rows}))


if __name__ == "__main__":
    main()
