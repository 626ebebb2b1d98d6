"""Step 3b, weight adjustment: iterative hard thresholding toward the dense layer's outputs.

    minimize tr(D H D^T), D = W - W_dense,   with W as sparse as the input

A gradient step with momentum (`proximal_gradient`), then only the largest weights are kept: n of
each group, or as many as the row had. With the soft mask they are chosen again at every step, so a
pruned weight can return. With the fixed mask the steps approach the least-squares optimum on the
given support; applied to the first pruning, that is the control SDS has to beat.

Hard thresholding does not guarantee descent, so each row ends at its best iterate. Where products
are bfloat16, so are the errors that decide this: a row with little gain is checked again in
float32, and keeps its original weights if it gained nothing."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.pruning import redense
from backend.pruning.masks import SMALL_GROUP, at_least, top_of_planes, top_per_group, top_per_row
from backend.pruning.pattern import Pattern
from backend.statistics.distribution import ascending

# Of the initial error: rows that keep more of it are checked in float32. Rounding moves that share
# by 0.005 at most, over all rows of SmolLM2-135M, here and in C++.
GAIN_THRESHOLD = 0.97


def adjust(
    start: Tensor, dense: Tensor, inputs: InputStatistics, pattern: Pattern, steps: int, soft: bool
) -> Tensor:
    """Adjust the sparse weights `start` [out, in] toward `dense` in `steps` steps.

    No row has a larger output error or more non-zeros than before. `soft`: update the mask at every
    step."""
    H, largest = inputs.rounded_gram, inputs.largest_eigenvalue
    kind = (pattern.group or redense.ROWS) if soft else redense.FIXED
    native = redense.usable(inputs, kind)
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
                redense.proximal_descent(first, goal, H, largest, steps, threshold)
            )
            best = best.view(len(best), group, -1).mT.reshape(best.shape) if group else best
        if H.dtype != best.dtype:
            little = ~(errors[1] <= GAIN_THRESHOLD * errors[0])
            rows, H32 = little.nonzero().squeeze(1), inputs.gram
            before, after = start[rows] - dense[rows], best[rows] - dense[rows]
            lost = torch.linalg.vecdot(after @ H32, after) >= torch.linalg.vecdot(
                before @ H32, before
            )
            best[rows[lost]] = start[rows[lost]]
        return best.add_(0.0)  # no -0

    if native:
        return solve_rows(start.contiguous(), dense.contiguous())
    return redense.by_rows(solve_rows, start, dense)


def _best_of(path: Iterator[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Each row at its lowest error, and errors [2, rows]: the initial and the lowest."""
    W, D, P = next(path)
    best, first = W.clone(), torch.linalg.vecdot(P, D)
    lowest = first
    for W, D, P in path:
        error = torch.linalg.vecdot(P, D)
        torch.where((error < lowest).unsqueeze(1), W, best, out=best)
        lowest = torch.minimum(error, lowest)
    return best, torch.stack([first, lowest])


def _to_planes(W: Tensor, group: int) -> Tensor:
    """Reorder the columns of W: the first members of all groups, then the second ones, and so on.

    Groups then lie across `group` planes, which are compared as a whole."""
    return W.view(len(W), -1, group).transpose(1, 2).reshape(W.shape)


def _threshold(start: Tensor, pattern: Pattern, soft: bool) -> Callable[[Tensor, float], Tensor]:
    """The thresholding operator, (point, step size) -> sparse, in place: as many weights as the
    pattern, or each row of `start`, keeps."""
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
    """Keep the `counts` [rows] largest weights of each row.

    The threshold of the last step mostly still gives the exact count; other rows are sorted again.
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
            # half way between the last score that is kept of each row and the next
            place, last = some.shape[1] - counts.unsqueeze(1), some.shape[1] - 1
            places = torch.cat([place.clamp(max=last), (place - 1).clamp(min=0)], 1)
            self.cuts[moved] = ascending(some).gather(1, places).mean(1, keepdim=True)
        return point.mul_(mask)
