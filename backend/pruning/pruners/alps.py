"""ALPS (Meng et al., NeurIPS 2024, arXiv 2406.07831): ADMM with a rising penalty, then conjugate
gradients on the mask it finds.

With inputs scaled to unit energy, V = W diag(n), n_j = sqrt(H_jj), and C = H scaled so + damping I
= Q diag(l) Q^T:

    V = (V_dense C + rho Z - U) Q diag(1 / (l + rho)) Q^T      least squares, near the sparse copy
    Z = the largest of V + U / rho, as the pattern asks        sparse copy
    U = U + rho (V - Z)                                        dual variable

Every few steps rho rises, the faster the more of the mask has changed, until it changes no more.
The eigenvectors of C serve every rho. Then the kept weights alone are solved for,

    minimize tr((V - V_dense) C (V - V_dense)^T)   over V on the mask of Z,

by conjugate gradients, row by row; on the scaled inputs the diagonal of C is constant, and no other
preconditioner is needed. Cf. `admm`, which has one rho, a mask that is reached gradually, and no
second part."""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.linalg.gram import NotPositiveDefiniteError
from backend.pruning.masks import keep_mask
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

STEPS, PENALTY_INTERVAL, GRADIENT_STEPS = (
    90,
    3,
    10,
)  # of ADMM at most, between two penalties, of the second part
RHO = 0.1
RESIDUAL_TOLERANCE = 1e-10  # of the first squared residual, below which float32 gets no further
PENALTY_FACTORS = (
    (0.1, 1.3),
    (0.005, 1.2),
    (0.0, 1.1),
)  # above this share of the kept changed -> factor


@pruner("alps", needs=StatisticsLevel.GRAM, products=200.0)  # 2 a step, eigh about 8
def alps(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Find a mask by ADMM and solve for the weights on it."""
    norms = inputs.energy.sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    C = inputs.gram / torch.outer(scale, scale)
    C.diagonal().add_(damping)
    dense = W * norms  # 0 for dead inputs: their weights go first
    mask = _find_mask(dense, C, pattern)
    return _solve_on(mask, dense, C) / scale


def _find_mask(dense: Tensor, C: Tensor, pattern: Pattern) -> Tensor:
    """The mask [out, in] that ADMM ends with."""
    values, Q = torch.linalg.eigh(C)
    if not values[0] > 0:
        raise NotPositiveDefiniteError
    goal, rho, U = dense @ C, RHO, torch.zeros_like(dense)
    mask = last = keep_mask(dense.abs(), pattern)
    Z = dense * mask
    for step in range(1, STEPS + 1):
        V = ((goal + rho * Z - U) @ Q / (values + rho)) @ Q.T
        point = V + U / rho
        mask = keep_mask(point.abs(), pattern)
        Z = point * mask
        U += rho * (V - Z)
        if step % PENALTY_INTERVAL == 0:
            changed = ((mask != last).sum() / (2 * mask.sum().clamp(min=1))).item()
            if not changed:
                break
            rho *= next(factor for share, factor in PENALTY_FACTORS if changed > share)
            last = mask
    return mask


def _solve_on(mask: Tensor, dense: Tensor, C: Tensor) -> Tensor:
    """Conjugate gradients from the dense weights under the mask; rows are independent."""
    V = dense * mask
    R = (dense - V) @ C * mask
    P, square = R.clone(), torch.linalg.vecdot(R, R)
    solved = RESIDUAL_TOLERANCE * square
    for _ in range(GRADIENT_STEPS):
        CP = P @ C * mask
        curvature = torch.linalg.vecdot(P, CP)
        length = torch.where(square > solved, square / curvature, 0.0).unsqueeze(1)
        V += length * P
        R -= length * CP
        before, square = square, torch.linalg.vecdot(R, R)
        P = R + torch.where(before > solved, square / before, 0.0).unsqueeze(1) * P
    return V
