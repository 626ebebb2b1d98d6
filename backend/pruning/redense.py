"""Step 2, re-dense: from W_sparse back to dense weights that keep a memory of the first pruning.

All weights, the zeros included, move until the layer reproduces the dense outputs:

    W_redense = argmin_W  1/2 tr(D H D^T) + a1 |W|_1,  D = W - W_dense,  from W_sparse

With H of full rank and no penalty the minimum is W_dense itself, which would undo step 1, so the
descent is stopped early. It restores the strong input directions first,

    W_t = W_dense + (W_sparse - W_dense) (I - eta H)^t     after t steps of size eta,

and leaves the weak ones as pruned. The descent is accelerated, see `proximal_gradient`, and the
penalty is relative to the layer (both ours)."""

from collections import deque

from torch import Tensor
from torch.nn.functional import softshrink

from backend.calibration.second_moments import InputStatistics
from backend.pruning.proximal_gradient import by_rows, proximal_descent

L1_PENALTY = 0.03  # relative to mean(diag H) mean|W_dense|


def redense(
    sparse: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, l1: float = L1_PENALTY
) -> Tensor:
    """W_redense [out, in] after `steps` steps of FISTA; a1 = l1 mean(diag H) mean|W_dense|."""
    a1 = l1 * inputs.energy.mean().item() * dense.abs().mean().item()

    def soft_threshold(point: Tensor, step: float) -> Tensor:
        return softshrink(point, a1 * step) if a1 > 0 else point

    H, largest = inputs.rounded_gram, inputs.largest_eigenvalue

    def solve_rows(sparse: Tensor, dense: Tensor) -> Tensor:
        path = proximal_descent(sparse, dense, H, largest, steps, soft_threshold)
        return deque(path, maxlen=1)[0][0]

    return by_rows(solve_rows, sparse, dense)
