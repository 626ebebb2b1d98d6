"""How long a live model takes to change, and to be measured.

    make bench-live
    make bench-live ARGS="--model toy --rounds 3"

Medians of the wall time in milliseconds, of changes to all layers of the blocks or to one, with
their layout for the decoder, which is also told alone; and the loss on 256 tokens, which a change
is followed by. The first change to a sparsity also makes the ranks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import cycle
from statistics import median

import torch
from torch import Tensor

from backend.live.dense import DenseModel
from backend.live.measurements import layer_histogram, losses, traced_losses
from backend.live.model import LiveModel
from backend.models.loading import load
from backend.models.sources.catalogue import inspect
from benchmarks.shared.memory import held

TOKENS, TRACED = 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--rounds", default=10, type=int)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    loaded = load(chosen.model, dtype=getattr(torch, inspect(chosen.model).saved_dtype))
    text = " ".join(["It was a bright cold day in April, and the clocks were striking."] * 40)
    ids = torch.tensor(loaded.tokenizer.encode(text)[:TOKENS])
    times, live = measured(DenseModel(loaded.model), ids, chosen.rounds)
    memory = {"dense": live.dense.nbytes, "live": live.nbytes, "process": held()}
    print(json.dumps({"ms": times, "bytes": memory, "decoder": live.running.decoder}))


def measured(dense: DenseModel, ids: Tensor, rounds: int) -> tuple[dict[str, float], LiveModel]:
    """What was done -> its median time."""
    live, times, names = LiveModel(dense), dict[str, float](), dense.in_blocks
    some = names[len(names) // 2]

    def timed(what: str, work: Callable[[], object], repeated: int = rounds) -> None:
        found = []
        for _ in range(repeated):
            began = time.perf_counter()
            work()
            found.append(1e3 * (time.perf_counter() - began))
        times[what] = median(found)
        print(f"{what:<40} {times[what]:8.1f} ms", flush=True)

    def changing(chosen: list[str], *formats: str) -> Callable[[], object]:
        each = cycle(formats)
        return lambda: live.apply(dict.fromkeys(chosen, next(each)))

    def loss() -> object:
        return [*losses(live, ids[None])]

    timed("open, and lay out all", lambda: live.running, 1)
    timed("first sparsity, with ranks", changing(names, "50%"), 1)
    timed("a sparsity of all layers, below 45 %", changing(names, "30%", "40%"))
    timed("a sparsity of all layers, above 45 %", changing(names, "50%", "60%"))
    timed("between half percents", changing(names, "30.3%", "40.3%"))
    timed("first 2:4, with ranks", changing(names, "2:4"), 1)
    timed("n:m of all layers", changing(names, "1:4", "2:4"))
    timed("a sparsity of one layer", changing([some], "30%", "40%"))
    timed("RTN to 4 bits of all layers", changing(names, "int4-g64", "int4-g32"))
    timed("RTN to 4 bits of one layer", changing([some], "int3-g64", "int4-g64"))
    timed("loss on 256 tokens, dense too", loss, 1)
    timed("loss on 256 tokens, 4 bits", loss)
    changing(names, "50%")()
    timed("loss on 256 tokens, 50 %", loss)
    made = {name: live.stored(name) for name in names}
    timed("layout of all layers alone, 50 %", lambda: live.running.write(made))
    timed("tokens by blocks", lambda: [*traced_losses(live, ids[:TRACED])], 1)
    timed(
        "histogram of one layer", lambda: layer_histogram(dense, some, live.stored(some), "instant")
    )
    return times, live


if __name__ == "__main__":
    main()
