"""Pruning masks that keep exactly the n highest scores.

Ties are common (zeros!), so a threshold alone would keep too many or too few weights; among equal
scores the lower index wins. Scores are float32 and not negative.

A mask has the dtype of the scores: 1 keeps a weight and 0 drops it. On a CPU, comparing into floats
and multiplying is several times faster than boolean selection."""

from functools import lru_cache

import torch
from torch import Tensor

from backend.pruning.pattern import Pattern
from backend.statistics.distribution import ascending, smallest

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
SMALL_GROUP = 16  # largest group for which a sorting network is faster than sorting


def keep_count(count: int, drop: float) -> int:
    """Number of weights that remain of `count` after floor(count * drop) are dropped."""
    return count - int(count * drop + 1e-6)


def top_per_row(scores: Tensor, keep: int | Tensor) -> Tensor:
    """Mask [rows, columns] of the `keep` highest scores of each row.

    Args:
        scores: [rows, columns].
        keep: one count for all rows, or int64 [rows].
    """
    columns = scores.shape[1]
    if isinstance(keep, int):
        threshold = smallest(scores, min(columns - keep, columns - 1)).unsqueeze(1)
        keep = torch.full_like(threshold, keep, dtype=torch.int64)
    else:
        keep = keep.unsqueeze(1)
        threshold = ascending(scores).gather(1, (columns - keep).clamp(max=columns - 1))
    mask = at_least(scores, threshold)
    tied = (mask.sum(1, dtype=torch.int32) != keep.squeeze(1)).nonzero().squeeze(1)
    if len(tied):  # rows in which more scores equal the threshold than may be kept
        above, equal = scores[tied] > threshold[tied], scores[tied] == threshold[tied]
        open_slots = keep[tied] - above.sum(1, keepdim=True)
        first_equal = equal & (equal.cumsum(1, dtype=torch.int32) <= open_slots)
        mask[tied] = (above | first_equal).to(scores.dtype)
    return mask


def top_overall(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` highest scores of the tensor, over all rows."""
    return top_per_row(scores.reshape(1, -1), keep).view_as(scores)


def top_of_planes(planes: Tensor, keep: int) -> Tensor:
    """Mask [group, ...] of the `keep` highest scores along the first dimension."""
    group = len(planes)
    if group > SMALL_GROUP:
        rows = planes.movedim(0, -1)
        return top_per_row(rows.reshape(-1, group), keep).view(rows.shape).movedim(-1, 0)
    wires = list(planes.unbind(0))
    for a, b, needs_larger, needs_smaller in _comparators(len(wires), keep - 1):
        x, y = wires[a], wires[b]
        if needs_larger:
            wires[a] = torch.maximum(x, y)
        if needs_smaller:
            wires[b] = torch.minimum(x, y)
    mask = at_least(planes, wires[keep - 1])
    if bool((mask.sum(0) == keep).all()):
        return mask
    return (higher_counts(planes) < keep).to(planes.dtype)  # pairwise comparison breaks ties


@lru_cache
def _comparators(count: int, rank: int) -> list[tuple[int, int, bool, bool]]:
    """Comparators of a descending sorting network for `count` values that determine `rank`.

    Each is (a, b, needs_larger, needs_smaller): wire a receives the larger value of wires a and b
    and wire b the smaller one, if a later comparator reads it."""
    live_wires, comparators = {rank}, list[tuple[int, int, bool, bool]]()
    for a, b in reversed(_batcher_pairs(count)):
        if a in live_wires or b in live_wires:
            comparators.append((a, b, a in live_wires, b in live_wires))
            live_wires |= {a, b}
    return comparators[::-1]


def _batcher_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of wires that Batcher's odd-even merge sort compares, in order."""
    pairs, run = list[tuple[int, int]](), 1
    while run < count:
        gap = run
        while gap:
            for start in range(gap % run, count - gap, 2 * gap):
                ends = range(start, min(start + gap, count - gap))
                pairs += [(a, a + gap) for a in ends if a // (2 * run) == (a + gap) // (2 * run)]
            gap //= 2
        run *= 2
    return pairs


def higher_counts(planes: Tensor) -> Tensor:
    """Number of entries along the first dimension that rank above each entry; int8.

    The first dimension has at most 127 entries. Among equal entries the earlier one ranks higher.
    """
    counts = torch.zeros_like(planes, dtype=torch.int8)
    for j in range(1, len(planes)):
        wins = planes[j] > planes[:j]  # a later entry must be strictly higher
        counts[:j] += wins
        counts[j] += j - wins.sum(0, dtype=torch.int8)
    return counts


def top_per_group(scores: Tensor, keep: int, group: int) -> Tensor:
    """Mask [rows, columns] of the `keep` highest scores of every `group` neighbors in a row."""
    planes = scores.reshape(-1, group).T
    planes = planes.contiguous() if group <= SMALL_GROUP else planes
    return top_of_planes(planes, keep).T.reshape(scores.shape)


def keep_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Mask [rows, columns] that follows `pattern` in every row."""
    if pattern.structured:
        return top_per_group(scores, pattern.keep, pattern.group)
    return top_per_row(scores, keep_count(scores.shape[1], pattern.drop))


def at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    """Mask of the scores at or above the threshold."""
    return torch.ge(scores, threshold, out=torch.empty_like(scores))


def masked(W: Tensor, keep: Tensor) -> Tensor:
    """Copy of `W` with +0 where the mask `keep` is 0."""
    bits = W.view(INTEGERS[W.element_size()])  # products of floats give -0, and are slower for bf16
    return (bits * keep.to(bits.dtype)).view(W.dtype)


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boolean masks; 1 when both are empty."""
    union = (a | b).sum().item()
    return (a & b).sum().item() / union if union else 1.0
