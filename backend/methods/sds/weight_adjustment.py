"""Step 3b: iterative hard thresholding towards the dense layer's outputs.

    minimise tr(D H D^T), D = W - W_dense,   with W as sparse as it came

A gradient step with momentum (`descent`), then only the largest weights stay: n of each group, or
as many as each row had. With the soft mask they are chosen anew at every step, so a weight pruned
earlier can return. With the fixed mask the steps approach the least-squares optimum on the weights
that are there; after the first pruning that is the control which SDS has to beat.

Hard thresholding promises no descent. Each row therefore ends as the best it ever was. Where the
products are bfloat16, so are the errors by which that is judged: a row that seems to have gained
little is judged again in float32, and stays as it came if it gained nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from backend.methods.calibration import InputStatistics
from backend.methods.sds.masks import (
    SMALL_GROUP,
    at_least,
    top_of_planes,
    top_per_group,
    top_per_row,
)
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.proximal_gradient import by_rows, proximal_descent
from backend.statistics.sorting import ascending

LITTLE = 0.9  # of its error at the start: a row that has more left is judged again

Threshold = Callable[[Tensor, float], Tensor]  # (point, step size) -> sparse, in place


def adjust(
    start: Tensor, dense: Tensor, inputs: InputStatistics, pattern: Pattern, steps: int, soft: bool
) -> Tensor:
    """The sparse weights `start` [out, in] after `steps` steps towards `dense`.

    No row is farther from the dense outputs than before, and no row has more non-zeros.

    Args:
        soft: whether the mask is chosen anew at every step.
    """
    H, group = inputs.rounded_gram, pattern.group if soft and pattern.group <= SMALL_GROUP else 0
    if group:
        H = _apart(_apart(H, group).T, group)

    def of_rows(start: Tensor, dense: Tensor) -> Tensor:
        first, goal = (_apart(start, group), _apart(dense, group)) if group else (start, dense)
        threshold = _threshold(first, pattern, soft)
        path = proximal_descent(first, goal, H, inputs.largest_eigenvalue, steps, threshold)
        best, gained = _best_of(path)
        best = _together(best, group) if group else best
        if H.dtype != best.dtype:
            _undo_losses(best, start, dense, inputs.gram, (~gained).nonzero().squeeze(1))
        return best.add_(0.0)  # no -0

    return by_rows(of_rows, start, dense)


def _best_of(path: Iterator[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each row at its lowest error, and whether that is well below its first."""
    W, D, P = next(path)
    best, first = W.clone(), torch.linalg.vecdot(P, D)
    lowest = first
    for W, D, P in path:
        error = torch.linalg.vecdot(P, D)
        torch.where((error < lowest).unsqueeze(1), W, best, out=best)
        lowest = torch.minimum(error, lowest)
    return best, lowest <= LITTLE * first


def _undo_losses(best: Tensor, start: Tensor, dense: Tensor, H: Tensor, rows: Tensor) -> None:
    """Puts those of `rows` back to `start` whose error is not lower; all in float32."""
    before, after = (start[rows] - dense[rows], best[rows] - dense[rows])
    lost = torch.linalg.vecdot(after @ H, after) >= torch.linalg.vecdot(before @ H, before)
    best[rows[lost]] = start[rows[lost]]


def _apart(W: Tensor, group: int) -> Tensor:
    """The columns of W reordered: first those that come first in their group, and so on.

    The members of all groups then lie in `group` planes, which are compared as a whole.
    """
    return W.view(len(W), -1, group).transpose(1, 2).reshape(W.shape)


def _together(W: Tensor, group: int) -> Tensor:
    """Undoes `_apart`."""
    return W.view(len(W), group, -1).transpose(1, 2).reshape(W.shape)


def _threshold(start: Tensor, pattern: Pattern, soft: bool) -> Threshold:
    """How many weights stay is that of the pattern, or of each row of `start`."""
    if not soft:
        keep = (start != 0).to(start.dtype)
        return lambda point, _: point.mul_(keep)
    if not pattern.structured:
        return _LargestOfRows((start != 0).sum(1))
    if pattern.group > SMALL_GROUP:
        return lambda p, _: p.mul_(top_per_group(p.abs(), pattern.keep, pattern.group))

    def of_planes(point: Tensor, _: float) -> Tensor:
        planes = point.view(len(point), pattern.group, -1).transpose(0, 1)
        planes.mul_(top_of_planes(planes.abs(), pattern.keep))
        return point

    return of_planes


class _LargestOfRows:
    """Keeps the `counts` [rows] largest weights of each row.

    What parted them at the last step mostly parts them again, as exactly as sorting would.
    """

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.cuts = torch.full((len(counts), 1), torch.nan, device=counts.device)

    def __call__(self, point: Tensor, _: float) -> Tensor:
        size = point.abs()
        mask = at_least(size, self.cuts)
        moved = (mask.sum(1) != self.counts).nonzero().squeeze(1)
        if len(moved):
            some, counts = size[moved], self.counts[moved]
            mask[moved] = top_per_row(some, counts)
            self.cuts[moved] = _middle(some, counts)
        return point.mul_(mask)


def _middle(scores: Tensor, keep: Tensor) -> Tensor:
    """Half way between the `keep`-th highest score of each row and the next."""
    place, last = scores.shape[1] - keep.unsqueeze(1), scores.shape[1] - 1
    places = torch.cat([place.clamp(max=last), (place - 1).clamp(min=0)], 1)
    return ascending(scores).gather(1, places).mean(1, keepdim=True)
