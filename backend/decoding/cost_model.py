"""Cost model: time of a verification pass on this machine, and the fastest tree size (ours).

    speed-up(n) = tau(n) / ( t(n) / t(1) + draft / t(1) )

t(n) is the measured time of a pass of the target model over n nodes, draft the time to make one
draft. A GPU verifies dozens of nodes in the time of one; a CPU may not, and then the best tree is
small. The break-even of a size is the tau at which the speed-up is 1, the denominator. A tree of
the root alone needs no draft and breaks even at 1, so nothing is drafted if drafting does not pay.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from backend.decoding.draft_tree import DynamicTree, Growth, Proposer, chain, expected_length
from backend.decoding.target_model import TargetModel
from backend.models.devices import synchronize

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
CONTEXT = 192  # cached tokens while measuring
REPEATS = 5
LOOKUP_LENGTHS = range(3, 11)  # draft tokens of prompt lookup
# costs are in passes over one token
MAX_LOOKUP_COST = 1.3  # cost to verify the longest draft of prompt lookup
MAX_TREE_COST = 2.0  # cost to verify the largest tree
MARGINAL_NODES = 8  # tree size up to which the cost of one more node is measured
MIN_NODE_COST = 0.002  # on a GPU, timings of a few more nodes are noise
TYPICAL_SPEED_UP = 1.5
MAX_THRESHOLD = 0.5  # on a busy machine, measured costs may demand a probability of 1
EQUAL_SHARE = 0.97  # share of the highest speed-up that counts as equal to it


class LapTimer:
    """Stopwatch that synchronizes with the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call, or since the start."""
        now = self._now()
        elapsed, self._last = now - self._last, now
        return elapsed


@dataclass(frozen=True)
class CostModel:
    """Measured times on this machine.

    Attributes:
        verify: nodes -> seconds of a pass, ascending from 1 node.
        draft: seconds to make one draft.
    """

    verify: Mapping[int, float]
    draft: float

    def ratio(self, nodes: int) -> float:
        """Return t(n) / t(1), interpolated linearly between the measured sizes."""
        sizes = list(self.verify)
        upper = next((n for n in sizes if n >= nodes), sizes[-1])
        lower = max((n for n in sizes if n <= nodes), default=upper)
        share = (nodes - lower) / (upper - lower) if upper > lower else 0.0
        seconds = self.verify[lower] * (1 - share) + self.verify[upper] * share
        return seconds / self.verify[1]

    def seconds(self, rows: int) -> float:
        """Return the seconds of a pass over `rows` tokens. Proportional beyond the largest measured
        size."""
        largest = max(self.verify)
        return self.verify[1] * self.ratio(rows) * max(1.0, rows / largest)

    def break_even(self, nodes: int) -> float:
        """Return the accepted length at which a tree of `nodes` nodes is as fast as no drafting."""
        return self.ratio(nodes) + (nodes > 1) * self.draft / self.verify[1]

    def speed_up(self, growth: Growth, nodes: int) -> float:
        """Return the predicted speed-up over decoding without a drafter."""
        return expected_length(growth, nodes) / self.break_even(nodes)

    def best_nodes(self, growth: Growth, least: int = 1) -> int:
        """Return the smallest size, at least `least` nodes, with nearly the highest predicted
        speed-up. Measured costs are noisy, and a larger tree costs more on a busy machine."""
        largest = max(least, min(max(self.verify), 1 + len(growth)))
        speed_ups = {n: self.speed_up(growth, n) for n in range(least, largest + 1)}
        threshold = EQUAL_SHARE * max(speed_ups.values())
        return next(n for n, speed_up in speed_ups.items() if speed_up >= threshold)

    def dynamic_tree(self) -> DynamicTree:
        """Return the tree policy whose nodes are all worth their cost.

        A node accepted with probability p saves p passes and costs c = dt(n)/dn / t(1). At a
        speed-up S the time of a pass is worth S tokens, so the node pays if p > S c.
        """
        sizes = list(self.verify)
        small = next((n for n in sizes if n >= MARGINAL_NODES), sizes[-1])
        cost = max(MIN_NODE_COST, (self.ratio(small) - 1) / max(1, small - 1))
        largest = max((n for n in sizes if self.ratio(n) <= MAX_TREE_COST), default=small)
        return DynamicTree(max(2, largest), min(MAX_THRESHOLD, TYPICAL_SPEED_UP * cost))

    @property
    def lookup_length(self) -> int:
        """Length of the longest draft of prompt lookup that is cheap to verify. Few matches are
        right for ten tokens."""
        cheap = [n for n in LOOKUP_LENGTHS if self.ratio(n + 1) <= MAX_LOOKUP_COST]
        return max(cheap, default=LOOKUP_LENGTHS[0])


@torch.inference_mode()
def measure_costs(
    target: TargetModel,
    proposer: Proposer | None = None,
    sizes: Sequence[int] = SIZES,
    repeats: int = REPEATS,
) -> CostModel:
    """Measure the time of passes over chains of each size, and of drafts of `proposer`.

    Takes the minimum of `repeats` rounds, because other processes can only slow a pass down."""
    sizes = [nodes for nodes in sizes if nodes < target.context // 2] or [1]
    length = max(2, min(CONTEXT, target.context - max(sizes) - 1))
    cache = target.new_cache(length + max(sizes))
    ids = [n % target.vocabulary for n in range(1, length + 1)]
    seconds = {n: list[float]() for n in sizes}
    hidden, _ = target.read(ids, cache)
    drafts: list[float] = []
    for turn in range(repeats + 1):  # the first round is a warm-up
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
            proposer.propose(hidden[-2:], ids[-2:])  # two new tokens, about as in real use
            drafts.append(clock.lap())
    return CostModel(
        {nodes: min(times[1:]) for nodes, times in seconds.items()}, min(drafts[1:], default=0.0)
    )
