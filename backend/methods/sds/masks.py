"""Which weights stay: the highest scores, by index, so that counts are exact.

Equal scores are common (zeros!), and a threshold would drop or keep too many of them: among equals
the lower index stays. Scores are float32 and not negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.methods.sds.pattern import Pattern
from backend.statistics.order import ascending

SMALL_GROUP = 16  # up to here comparing all pairs is faster than sorting


def kept_of(count: int, drop: float) -> int:
    """How many of `count` stay when the share `drop` goes, dropping floor(count * drop)."""
    return count - int(count * drop + 1e-6)


def top_per_row(scores: Tensor, keep: int | Tensor) -> Tensor:
    """Mask [rows, columns] of the `keep` highest scores of each row.

    Args:
        keep: one number for all rows, or int64 [rows].
    """
    rows, columns = scores.shape
    keep = torch.as_tensor(keep, device=scores.device).expand(rows).unsqueeze(1)
    place = (columns - keep).clamp(max=columns - 1)
    threshold = ascending(scores).gather(1, place)
    mask = scores > threshold
    ties = scores == threshold
    left = keep - mask.sum(1, keepdim=True)  # how many of the ties stay
    return mask | (ties & (ties.cumsum(1, dtype=torch.int32) <= left))


def top_overall(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` highest scores of the whole tensor."""
    return top_per_row(scores.reshape(1, -1), keep).view_as(scores)


def top_per_group(scores: Tensor, keep: int, group: int) -> Tensor:
    """Mask [rows, columns] of the `keep` highest of every `group` neighbours of a row."""
    if group > SMALL_GROUP:
        return top_per_row(scores.reshape(-1, group), keep).view_as(scores)
    planes = scores.reshape(-1, group).T.contiguous()  # [group, rows * columns / group]
    beaten = torch.zeros_like(planes, dtype=torch.int8)  # by how many of its group
    for j in range(1, group):
        wins = planes[j] > planes[:j]  # a later one must be strictly higher
        beaten[:j] += wins
        beaten[j] += j - wins.sum(0, dtype=torch.int8)
    return (beaten < keep).T.reshape(scores.shape)


def keep_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """Mask [rows, columns] that follows `pattern` in every row."""
    if pattern.structured:
        return top_per_group(scores, pattern.keep, pattern.group)
    return top_per_row(scores, kept_of(scores.shape[1], pattern.drop))


def masked(W: Tensor, keep: Tensor) -> Tensor:
    """A copy of `W` with 0 where `keep` is false.

    A product is several times faster on a CPU than choosing; adding 0 turns its -0 into +0.
    """
    return (W * keep.view(torch.uint8).to(W.dtype)).add_(0.0)


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; 1 when both are empty."""
    union = (a | b).sum().item()
    return (a & b).sum().item() / union if union else 1.0
