"""How long something takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import NamedTuple

from backend.decoding.benchmark import Decoder


class Taken(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall: float
    cpu: float


def timed(act: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def decode_seconds(
    decoders: Sequence[Decoder], prompt: Sequence[int], tokens: int, repeats: int
) -> list[list[float]]:
    """Processor seconds to decode `tokens` tokens after a prompt, for each decoder and repeat. They
    alternate; one extra warm-up round is not counted."""
    rounds = []
    for _ in range(1 + repeats):
        rounds.append([])
        for decoder in decoders:
            steps = decoder.decode(prompt, 1 + tokens, ())
            next(steps)  # prefill
            begun = time.process_time()
            deque(steps, 0)
            rounds[-1].append(time.process_time() - begun)
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]
