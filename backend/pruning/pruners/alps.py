"""ALPS pruning (Meng et al., NeurIPS 2024, arXiv 2406.07831): ADMM with a rising penalty, then
conjugate gradients on the resulting mask.

With inputs scaled to unit energy, V = W diag(n), n_j = sqrt(H_jj), and C = H scaled so + damping I
= Q diag(l) Q^T:

    V = (V_dense C + rho Z - U) Q diag(1 / (l + rho)) Q^T      least squares, near the sparse copy
    Z = the largest of V + U / rho, as the pattern asks        sparse copy
    U = U + rho (V - Z)                                        dual variable

Every few steps rho rises, faster if more of the mask has changed, until the mask is stable. The
eigenvectors of C serve every rho. Then the problem restricted to the kept weights,

    minimize tr((V - V_dense) C (V - V_dense)^T)   over V on the mask of Z,

is solved by conjugate gradients, row by row. With scaled inputs the diagonal of C is constant, so
no preconditioner is needed. In contrast, `admm` has a constant rho, reaches its mask gradually, and
has no second part."""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.linalg.gram import NotPositiveDefiniteError
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

STEPS = 90  # maximum steps of ADMM
RHO = 0.1  # initial penalty
PENALTY_INTERVAL = 3  # steps between two penalties
# Share of the kept weights that must have changed, and the factor of rho.
PENALTY_FACTORS = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
GRADIENT_STEPS = 10  # steps of conjugate gradients
# Squared residual relative to the initial one, below which float32 makes no progress.
RESIDUAL_TOLERANCE = 1e-10


# Two products per step, and the eigendecomposition counts as about 8.
@pruner("alps", needs=StatisticsLevel.GRAM, products=200.0)
def alps(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Find a mask with ADMM, then solve for the weights on that mask."""
    norms = inputs.energy.sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    C = inputs.gram / torch.outer(scale, scale)
    C.diagonal().add_(damping)
    dense = W * norms  # 0 for dead inputs, so their weights are dropped first
    mask = _find_mask(dense, C, pattern)
    return _solve_on(mask, dense, C) / scale


def _find_mask(dense: Tensor, C: Tensor, pattern: Pattern) -> Tensor:
    """Mask [out, in] at the end of ADMM."""
    values, Q = torch.linalg.eigh(C)
    if not values[0] > 0:
        raise NotPositiveDefiniteError
    goal, rho, U = dense @ C, RHO, torch.zeros_like(dense)
    mask = last_mask = keep_mask(dense.abs(), pattern)
    Z = dense * mask
    for step in range(1, STEPS + 1):
        V = ((goal + rho * Z - U) @ Q / (values + rho)) @ Q.T
        point = V + U / rho
        mask = keep_mask(point.abs(), pattern)
        Z = point * mask
        U += rho * (V - Z)
        if step % PENALTY_INTERVAL == 0:
            changed_share = ((mask != last_mask).sum() / (2 * mask.sum().clamp(min=1))).item()
            if not changed_share:
                break
            rho *= next(factor for share, factor in PENALTY_FACTORS if changed_share > share)
            last_mask = mask
    return mask


def _solve_on(mask: Tensor, dense: Tensor, C: Tensor) -> Tensor:
    """Solve for the weights on the mask by conjugate gradients from the dense weights."""
    V = dense * mask
    R = (dense - V) @ C * mask
    P, square = R.clone(), torch.linalg.vecdot(R, R)
    tolerance = RESIDUAL_TOLERANCE * square
    for _ in range(GRADIENT_STEPS):
        CP = P @ C * mask
        curvature = torch.linalg.vecdot(P, CP)
        length = torch.where(square > tolerance, square / curvature, 0.0).unsqueeze(1)
        V += length * P
        R -= length * CP
        last_square, square = square, torch.linalg.vecdot(R, R)
        P = R + torch.where(last_square > tolerance, square / last_square, 0.0).unsqueeze(1) * P
    return V
