"""Measured speed of models on this machine: tokens per second of greedy decoding at batch size 1,
without the prefill."""

import time
from collections.abc import Callable, Iterator, Sequence

from backend.reporter import Reporter, stop_if_asked

Clock = Callable[[], float]
Decoder = Callable[[Sequence[int]], Iterator[int]]  # ids of a prompt -> greedy tokens


def decode_seconds(
    decoders: Sequence[Decoder],
    prompt: Sequence[int],
    tokens: int,
    repeats: int,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds to decode `tokens` tokens after a prompt, for each decoder and repeat.

    They alternate; one extra warm-up round is not counted. `clock`: seconds; a token is on the
    processor when it is read. Raises CancelledError: cancellation was requested."""
    rounds = []
    for number in range(1 + repeats):
        reporter.progress(number, 1 + repeats, "Measuring speed")
        rounds.append([_decoded(each, prompt, tokens, reporter, clock) for each in decoders])
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _decoded(
    decoder: Decoder, prompt: Sequence[int], tokens: int, reporter: Reporter, clock: Clock
) -> float:
    stream = decoder(prompt)
    next(stream)  # prefill
    begun = clock()
    for _ in range(tokens):
        stop_if_asked(reporter)
        next(stream)
    return clock() - begun
