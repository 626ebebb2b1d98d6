"""How long a live model takes as a browser sees it: from a knob to what has changed.

    make bench-screen.live
    make bench-screen.live ARGS="--model toy --rounds 3"

The process of a data folder is asked over its socket, as the dashboard does. Milliseconds from the
request to each event, median and 95 % quantile over rounds: the new state is made (applied), its
loss is measured on 256 tokens, the first word of its text has come (asked without the loss), all
losses on 2,048 tokens. The first change is told alone: it loads the model and makes ranks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from statistics import median
from typing import Any

from backend.models.sources.catalog import inspect
from backend.queue.actor import Actor
from backend.queue.launcher import SERVING
from backend.settings import settings
from backend.store.migrate import upgrade
from benchmarks.shared.timing import p95
from jobs.serving.client import send_request

HOST = Actor("benchmark", "host")
TRACED = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
KNOBS = {  # what is changed -> formats of all layers that take turns
    "sparsity": ("30p", "40p", "50p", "60p"),
    "n:m": ("2of4", "4of8"),
    "bits": ("int4-g64", "int3-g64", "int6-g64"),
}


Rows = dict[str, dict[str, float]]


class Knob:
    """Asks for states of a model."""

    def __init__(self, model: str) -> None:
        facts = inspect(model)
        self.model, self.layers, self.outside = model, len(facts.linears), len(facts.embeddings)

    def all(self, form: str) -> str:
        return f"~magnitude~rtn~{form}_dense~0x{self.layers}_1x{self.outside}"

    def one(self, form: str) -> str:
        """A block's worth of layers in the middle."""
        before, some = self.layers // 2, 7
        after = self.layers - before - some + self.outside
        return f"~magnitude~rtn~dense_{form}~0x{before}_1x{some}_0x{after}"

    async def ask(self, state: str, *want: str, **more: Any) -> dict[str, float]:
        """Event -> milliseconds until it came first."""
        body = {"model": self.model, "state": state, "browser": "b", "want": want, **more}
        began, found = time.perf_counter(), dict[str, float]()
        async with send_request("/live/answer", json.dumps(body).encode(), HOST) as response:
            async for line in response.aiter_lines():
                if not line:
                    continue
                told = json.loads(line[6:])
                name = f"text {told['side']}" if told["event"] == "text" else told["event"]
                found.setdefault(name, 1e3 * (time.perf_counter() - began))
                if told["event"] == "error":
                    raise SystemExit(told["what"] + " " + told["why"])
        return found


async def measured(knob: Knob, rounds: int) -> Rows:
    """What was done -> its times; told as they are known."""
    rows: Rows = {}
    text = {"prompt": "The history of the city begins", "tokens": 8}

    def note(what: str, *found: float) -> None:
        rows[what] = {"median": median(found), "p95": p95(found)}
        print(f"{what:<44} {rows[what]['median']:8.0f} {rows[what]['p95']:8.0f} ms", flush=True)

    note("the first: load, rank, 50 %", (await knob.ask(knob.all("50p"), "loss"))["loss"])
    note("the first text", (await knob.ask(knob.all("50p"), "text", **text))["text live"])
    for what, formats in KNOBS.items():
        await knob.ask(knob.all(formats[0]))  # makes ranks and ranges
        states = [knob.all(formats[n % len(formats)]) for n in range(1, 2 * rounds + 1)]
        losses = [await knob.ask(state, "loss") for state in states[:rounds]]
        words = [await knob.ask(state, "text", **text) for state in states[rounds:]]
        note(f"{what} of all: applied", *(x["applied"] for x in losses))
        note(f"{what} of all: loss on 256 tokens", *(x["loss"] for x in losses))
        note(f"{what} of all: losses on 2,048 tokens", *(x["done"] for x in losses))
        note(f"{what} of all: first word", *(x["text live"] for x in words))
    await knob.ask(knob.one("50p"))
    block = [await knob.ask(knob.one(("30p", "50p")[n % 2]), "loss") for n in range(rounds)]
    note("sparsity of a block: applied", *(x["applied"] for x in block))
    note("sparsity of a block: loss on 256 tokens", *(x["loss"] for x in block))
    note("tokens × blocks", (await knob.ask(knob.all("50p"), "why", text=TRACED))["done"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--rounds", default=10, type=int)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "SLIMSCOPE_DATA_DIR": folder,
            "SLIMSCOPE_THREADS": str(chosen.threads),
            "SLIMSCOPE_IDLE_EXIT": "1",
            "OMP_NUM_THREADS": str(chosen.threads),
        }
        settings.cache_clear()
        upgrade()
        rows = asyncio.run(measured(Knob(chosen.model), chosen.rounds))
        print(json.dumps({"threads": chosen.threads, "ms": rows}))
        while SERVING.is_alive():  # ends by itself
            time.sleep(1)


if __name__ == "__main__":
    main()
