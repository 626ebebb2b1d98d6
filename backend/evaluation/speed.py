"""Speed of pruned models on this machine. Everything is measured, nothing is derived.

- decoding: tokens per second of greedy decoding, one text at a time, behind a prompt whose pass is
  not counted; `transformers`' own cache and kernels, as the saved model is used;
- one matrix times one vector, which is what a decoded token costs in each linear: dense, and with
  the zeros left out (CSR, 32-bit indices), for several shares of zeros. Where the two cross is the
  share from which leaving out zeros pays;
- on GPUs with sparse tensor cores, dense against 2:4.

Two products that are compared are timed in turn, after a warm-up, and told as the ratio of the best
times: on a shared machine the median of something so short measures the neighbours. Decoding takes
long enough for a median, and its range is told with it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from backend.models.greedy import greedy
from backend.reporter import Reporter, stop_if_asked

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_S = 0.001  # a timing shorter than this measures the clock
ROUNDS = 15
AMPERE = (8, 0)  # the first GPUs with sparse tensor cores
SEMI_BATCHES = (1, 64)
SEED = 0


Clock = Callable[[torch.device], float]


@dataclass(frozen=True)
class DecodingSpeed:
    """Tokens per second over several repeats.

    Attributes:
        value: median; `lowest`, `highest`: of the repeats.
    """

    value: float
    lowest: float
    highest: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float], tokens: int) -> DecodingSpeed:
        """Of repeats that decoded `tokens` tokens each."""
        rates = [tokens / s for s in seconds]
        return cls(median(rates), min(rates), max(rates), len(rates))


def decode_seconds(
    models: Sequence[PreTrainedModel],
    prompt: Sequence[int],
    tokens: int,
    repeats: int,
    reporter: Reporter,
    clock: Clock | None = None,
) -> list[list[float]]:
    """Seconds of decoding `tokens` tokens behind the ids of a prompt: for each model, each of
    `repeats` repeats. The models take turns; a first round warms up and does not count.

    Args:
        clock: seconds on a device; wall-clock time when None.

    Raises:
        CancelledError: cancellation was requested.
    """
    rounds = []
    for number in range(1 + repeats):
        reporter.progress(number, 1 + repeats, "Measuring speed")
        read = clock or _now
        rounds.append([_decoded(model, prompt, tokens, reporter, read) for model in models])
    return [list(of_model) for of_model in zip(*rounds[1:], strict=True)]


def _decoded(
    model: PreTrainedModel, prompt: Sequence[int], tokens: int, reporter: Reporter, clock: Clock
) -> float:
    stream = greedy(model, prompt)
    next(stream)  # the pass of the prompt
    begun = clock(model.device)
    for _ in range(tokens):
        stop_if_asked(reporter)
        next(stream)
    return clock(model.device) - begun


def _now(device: torch.device) -> float:
    """Seconds, after synchronising with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class SparseProductCurve:
    """Speed of a sparse matrix product relative to the dense one.

    Attributes:
        shape: (out, in).
        zeros: shares of zeros, ascending; `speed_up`: dense time over sparse time at each.
    """

    shape: tuple[int, int]
    zeros: tuple[float, ...]
    speed_up: tuple[float, ...]

    @property
    def break_even(self) -> float | None:
        """The share of zeros above which leaving them out always paid; None if it did not at the
        largest share. Between two shares the logarithm of the speed-up is taken for a line.
        """
        logs = [math.log(x) for x in self.speed_up]
        slower = [i for i, log in enumerate(logs) if log < 0]
        if not slower:
            return self.zeros[0]
        i = slower[-1]
        if i == len(logs) - 1:
            return None
        part = -logs[i] / (logs[i + 1] - logs[i])
        return self.zeros[i] + part * (self.zeros[i + 1] - self.zeros[i])


@torch.no_grad()
def csr_curve(
    rows: int,
    columns: int,
    device: torch.device,
    reporter: Reporter,
    shares: Sequence[float] = SHARES,
) -> SparseProductCurve:
    """One vector through a float32 matrix [rows, columns]: dense against CSR, for random zeros.

    Raises:
        CancelledError: cancellation was requested.
    """
    dice = torch.Generator().manual_seed(SEED)
    W = torch.randn(rows, columns, generator=dice).to(device)
    place = torch.rand(rows, columns, generator=dice).to(device)
    x = torch.randn(columns, generator=dice).to(device)
    found = []
    for share in shares:
        stop_if_asked(reporter)
        pruned = W * (place >= share)
        packed = csr(pruned)
        found.append(_ratio(lambda m=pruned: m @ x, lambda m=packed: m @ x, device))  # type: ignore[misc]
    return SparseProductCurve((rows, columns), tuple(shares), tuple(found))


def csr(W: Tensor) -> Tensor:
    """`W` [out, in] as compressed sparse rows with 32-bit indices, half as wide as torch's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wide = W.to_sparse_csr()
        indices = (wide.crow_indices().int(), wide.col_indices().int())
        return torch.sparse_csr_tensor(
            *indices, wide.values(), W.shape, device=W.device, check_invariants=False
        )


@torch.no_grad()
def semi_structured(
    rows: int, columns: int, device: torch.device, reporter: Reporter
) -> dict[int, float]:
    """Speed-up of 2:4 over dense in 16 bits, by the number of vectors at once; empty where the
    device has no sparse tensor cores, or torch no kernel for the shape."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < AMPERE:
        return {}
    stop_if_asked(reporter)
    W = torch.randn(rows, columns, device=device, dtype=torch.float16)
    dense = (W.view(-1, 4) * torch.tensor([1, 1, 0, 0], device=device)).view(rows, columns)
    try:
        sparse = to_sparse_semi_structured(dense)
        found = {}
        for batch in SEMI_BATCHES:
            x = torch.randn(batch, columns, device=device, dtype=torch.float16)
            found[batch] = _ratio(
                lambda x=x: functional.linear(x, dense),  # type: ignore[misc]
                lambda x=x: functional.linear(x, sparse),  # type: ignore[misc]
                device,
            )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reporter.log(f"No 2:4 kernel for {rows} by {columns}: {error}"[:300])
        return {}
    return found


def _ratio(one: Callable[[], Tensor], other: Callable[[], Tensor], device: torch.device) -> float:
    """Time of `one` over time of `other`: the best of `ROUNDS`, taken in turn."""
    calls = [_calls(each, device) for each in (one, other)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for each, count, taken in zip((one, other), calls, times, strict=True):
            taken.append(_seconds(each, count, device))
    return min(times[0]) / min(times[1])


def _calls(work: Callable[[], Tensor], device: torch.device) -> int:
    """How many calls take at least `LEAST_S`; the first ones warm up."""
    count = 1
    _seconds(work, count, device)
    while (taken := _seconds(work, count, device) * count) < LEAST_S:
        count *= max(2, min(10, math.ceil(LEAST_S / max(taken, 1e-9))))
    return count


def _seconds(work: Callable[[], Tensor], count: int, device: torch.device) -> float:
    """Seconds a call takes, mean of `count`."""
    begun = _now(device)
    for _ in range(count):
        work()
    return (_now(device) - begun) / count
