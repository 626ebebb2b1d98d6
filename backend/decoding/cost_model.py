"""Cost model: time of a verification pass on this machine, and the fastest tree size (ours).

    speed-up(n) = tau(n) / ( t(n) / t(1) + draft / t(1) )

t(n) is the measured time of a pass of the target model over n nodes, draft that of one draft. A GPU
verifies dozens of nodes in the time of one; a CPU may not, and then the best tree is small. The
break-even of a size is the tau at which the speed-up is 1, the denominator. A tree of the root
alone needs no draft and breaks even at 1: where drafting does not pay, nothing is drafted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from backend.decoding.draft_tree import DynamicTree, Growth, Proposer, chain, expected_length
from backend.decoding.target_model import TargetModel

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
CONTEXT = 192  # cached tokens while measuring
REPEATS = 5
LOOKUP_LENGTHS = range(3, 11)  # draft tokens of prompt lookup
LOOKUP_COST = 1.3  # of a pass that verifies them, in passes over one token
MARGINAL_NODES = 8  # over which the cost of one more is measured
MIN_NODE_COST = 0.002  # share of a pass: on a GPU, timings of a few more nodes are noise
LARGEST_COST = 2.0  # of a pass over the largest tree, in passes over one token
USUAL_SPEED_UP = 1.5
HIGHEST = 0.5  # chance a node is asked for: what is measured on a busy machine may ask for 1
NEAR = 0.97  # share of the highest speed-up that counts as equal to it


class LapTimer:
    """A stopwatch; synchronizes with the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._wait = device.type == "cuda"
        self._last = self._now()

    def _now(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call, or since the start."""
        now = self._now()
        passed, self._last = now - self._last, now
        return passed


@dataclass(frozen=True)
class CostModel:
    """Measured seconds: `verify` of a pass by its nodes, ascending from 1; `draft` of a draft."""

    verify: Mapping[int, float]
    draft: float

    def ratio(self, nodes: int) -> float:
        """t(n) / t(1), linearly interpolated between measured sizes."""
        sizes = list(self.verify)
        upper = next((n for n in sizes if n >= nodes), sizes[-1])
        lower = max((n for n in sizes if n <= nodes), default=upper)
        share = (nodes - lower) / (upper - lower) if upper > lower else 0.0
        seconds = self.verify[lower] * (1 - share) + self.verify[upper] * share
        return seconds / self.verify[1]

    def seconds(self, rows: int) -> float:
        """Of a pass over as many tokens; beyond the largest that was measured in proportion."""
        most = max(self.verify)
        return self.verify[1] * self.ratio(rows) * max(1.0, rows / most)

    def break_even(self, nodes: int) -> float:
        """Accepted length at which a tree of `nodes` nodes is as fast as no drafting."""
        return self.ratio(nodes) + (nodes > 1) * self.draft / self.verify[1]

    def speed_up(self, growth: Growth, nodes: int) -> float:
        """Predicted speed-up over decoding without a drafter."""
        return expected_length(growth, nodes) / self.break_even(nodes)

    def best_nodes(self, growth: Growth, least: int = 1) -> int:
        """The smallest tree, of `least` nodes or more, with nearly the highest predicted speed-up:
        costs are noisy, and a larger tree that gains nothing costs more where the machine is busy.
        """
        largest = max(least, min(max(self.verify), 1 + len(growth)))
        found = {n: self.speed_up(growth, n) for n in range(least, largest + 1)}
        return next(n for n, value in found.items() if value >= NEAR * max(found.values()))

    def dynamic_tree(self) -> DynamicTree:
        """Trees whose every node is worth its cost.

        A node of chance p saves p passes and costs c = dt(n)/dn / t(1); decoding with a speed-up S
        makes the time of a pass worth S tokens, so the node pays where p > S c.
        """
        sizes = list(self.verify)
        few = next((n for n in sizes if n >= MARGINAL_NODES), sizes[-1])
        cost = max(MIN_NODE_COST, (self.ratio(few) - 1) / max(1, few - 1))
        most = max((n for n in sizes if self.ratio(n) <= LARGEST_COST), default=few)
        return DynamicTree(max(2, most), min(HIGHEST, USUAL_SPEED_UP * cost))

    @property
    def lookup_length(self) -> int:
        """The longest draft of prompt lookup that is cheap to verify; few matches hold for ten
        tokens."""
        cheap = [n for n in LOOKUP_LENGTHS if self.ratio(n + 1) <= LOOKUP_COST]
        return max(cheap, default=LOOKUP_LENGTHS[0])


@torch.inference_mode()
def measure_costs(
    target: TargetModel,
    proposer: Proposer | None = None,
    sizes: Sequence[int] = SIZES,
    repeats: int = REPEATS,
) -> CostModel:
    """Seconds of passes over chains of each size, in turn, and of drafts of `proposer`.

    The minimum of `repeats` turns counts, as other processes only ever slow a pass down."""
    sizes = [nodes for nodes in sizes if nodes < target.context // 2] or [1]
    length = max(2, min(CONTEXT, target.context - max(sizes) - 1))
    cache = target.new_cache(length + max(sizes))
    ids = [n % target.vocabulary for n in range(1, length + 1)]
    seconds = {n: list[float]() for n in sizes}
    hidden, _ = target.read(ids, cache)
    drafts: list[float] = []
    for turn in range(repeats + 1):  # the first is a warm-up
        for nodes in sizes:
            clock = LapTimer(target.device)
            target.read(ids[:1] * nodes, cache, chain(nodes - 1) if nodes > 1 else None, nodes)
            seconds[nodes].append(clock.lap())
            cache.rewind(length)
        if proposer:
            if turn == 0:
                proposer.start(ids[0], length + 2 * (repeats + 1))
                proposer.propose(hidden, [*ids[1:], ids[0]])
            clock = LapTimer(target.device)
            proposer.propose(hidden[-2:], ids[-2:])  # two new anchors, about as in use
            drafts.append(clock.lap())
    return CostModel(
        {nodes: min(times[1:]) for nodes, times in seconds.items()}, min(drafts[1:], default=0.0)
    )
