"""Step 3b, weight adjustment: iterative hard thresholding toward the outputs of the dense layer.

    minimize tr(D H D^T), D = W - W_dense,   with W as sparse as the input

Each step is a gradient step with momentum (`redense.proximal_descent`), after which only the
largest weights remain: n of each group, or as many as the row had. The soft mask is chosen again at
every step, so a pruned weight can return. With the fixed mask the steps approach the least-squares
optimum on its support; applied to the first pruning, this is the control that SDS has to beat.

Hard thresholding does not guarantee descent, so each row ends at its best iterate. If products are
in bfloat16, so are the errors that select the iterate. A row with little gain is therefore checked
again in float32, and returns to its original weights if it gained nothing."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.pruning import redense
from backend.pruning.masks import SMALL_GROUP, at_least, top_of_planes, top_per_group, top_per_row
from backend.pruning.pattern import Pattern
from backend.statistics.distribution import ascending

# Rows that end above this share of their initial error are checked in float32. Over all rows of
# SmolLM2-135M, rounding moves the share by at most 0.005, in PyTorch and in C++.
GAIN_THRESHOLD = 0.97


def adjust(
    start: Tensor, dense: Tensor, inputs: InputStatistics, pattern: Pattern, steps: int, soft: bool
) -> Tensor:
    """Adjust the sparse weights `start` toward the outputs of `dense`.

    No row ends with a larger output error or more non-zeros than before.

    Args:
        start: sparse weights [out, in].
        dense: original weights [out, in].
        inputs: statistics of the layer's inputs.
        pattern: sparsity pattern of `start`.
        steps: number of steps.
        soft: update the mask at every step.
    """
    H, largest_eigenvalue = inputs.rounded_gram, inputs.largest_eigenvalue
    kind = (pattern.group or redense.ROWS) if soft else redense.FIXED
    native = redense.is_fast(inputs, kind)
    group = pattern.group if soft and not native and pattern.group <= SMALL_GROUP else 0
    if group:
        H = _to_planes(_to_planes(H, group).T, group)

    def solve_rows(start: Tensor, dense: Tensor) -> Tensor:
        if native:
            best, errors = redense.descend(start, dense, inputs, steps, kind, pattern.keep)
        else:
            first, goal = (_to_planes(x, group) if group else x for x in (start, dense))
            threshold = _threshold(first, pattern, soft)
            best, errors = _best_of(
                redense.proximal_descent(first, goal, H, largest_eigenvalue, steps, threshold)
            )
            best = best.view(len(best), group, -1).mT.reshape(best.shape) if group else best
        if H.dtype != best.dtype:
            has_little_gain = ~(errors[1] <= GAIN_THRESHOLD * errors[0])
            rows, H32 = has_little_gain.nonzero().squeeze(1), inputs.gram
            before, after = start[rows] - dense[rows], best[rows] - dense[rows]
            no_gain = torch.linalg.vecdot(after @ H32, after) >= torch.linalg.vecdot(
                before @ H32, before
            )
            best[rows[no_gain]] = start[rows[no_gain]]
        return best.add_(0.0)  # adding 0 turns -0 into +0

    if native:
        return solve_rows(start.contiguous(), dense.contiguous())
    return redense.by_rows(solve_rows, start, dense)


def _best_of(iterates: Iterator[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each row at the iterate with its lowest error, and errors [2, rows]: initial and lowest."""
    W, D, P = next(iterates)
    best, initial = W.clone(), torch.linalg.vecdot(P, D)
    lowest = initial
    for W, D, P in iterates:
        error = torch.linalg.vecdot(P, D)
        torch.where((error < lowest).unsqueeze(1), W, best, out=best)
        lowest = torch.minimum(error, lowest)
    return best, torch.stack([initial, lowest])


def _to_planes(W: Tensor, group: int) -> Tensor:
    """Reorder the columns of W: the first members of all groups, then the second members, and so
    on. Comparing `group` planes elementwise then compares the members of every group."""
    return W.view(len(W), -1, group).transpose(1, 2).reshape(W.shape)


def _threshold(start: Tensor, pattern: Pattern, soft: bool) -> Callable[[Tensor, float], Tensor]:
    """Thresholding operator (point, step size) -> sparse, in place. It keeps as many weights as the
    pattern asks for, or as each row of `start` has."""
    if not soft:
        keep = (start != 0).to(start.dtype)
        return lambda point, _: point.mul_(keep)
    if not pattern.structured:
        return _LargestOfRows((start != 0).sum(1))
    if pattern.group > SMALL_GROUP:
        return lambda p, _: p.mul_(top_per_group(p.abs(), pattern.keep, pattern.group))

    def threshold_planes(point: Tensor, _: float) -> Tensor:
        planes = point.view(len(point), pattern.group, -1).transpose(0, 1)
        planes.mul_(top_of_planes(planes.abs(), pattern.keep))
        return point

    return threshold_planes


class _LargestOfRows:
    """Thresholding operator that keeps the `counts` [rows] largest weights of each row.

    The threshold of the previous step usually still gives the exact count; only the remaining rows
    are sorted again."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.thresholds = torch.full((len(counts), 1), torch.nan, device=counts.device)

    def __call__(self, point: Tensor, _: float) -> Tensor:
        size = point.abs()
        mask = at_least(size, self.thresholds)
        rows = (mask.sum(1) != self.counts).nonzero().squeeze(1)
        if len(rows):
            sizes, counts = size[rows], self.counts[rows]
            mask[rows] = top_per_row(sizes, counts)
            # The threshold lies halfway between the smallest kept and the largest dropped size.
            kept, last = sizes.shape[1] - counts.unsqueeze(1), sizes.shape[1] - 1
            neighbors = torch.cat([kept.clamp(max=last), (kept - 1).clamp(min=0)], 1)
            self.thresholds[rows] = ascending(sizes).gather(1, neighbors).mean(1, keepdim=True)
        return point.mul_(mask)
