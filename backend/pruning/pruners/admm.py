"""ADMM pruning with a gradual mask (Boža, arXiv 2401.02938), which solves all columns jointly.

With inputs scaled to unit energy, V = W diag(n), n_j = sqrt(H_jj), and C = H scaled so + damping I:

    minimize tr((V - V_dense) C (V - V_dense)^T)   with V as sparse as the pattern asks

    V = (V_dense C + rho (Z - U)) (C + rho I)^-1       least squares, near the sparse copy
    Z = mask * (V + U)                                 sparse copy
    U = U + V - Z                                      scaled dual variable

One Cholesky factor serves all steps. The mask keeps the largest |V + U|. A percentage is reached
gradually, s_t = s (1 - (1 - t / T)^3), and then the mask is fixed. `alps` is a related algorithm.
"""

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.linalg.gram import cholesky
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import pruner

STEPS, RHO = 20, 1.0
MASK_STEPS = 15  # T: number of steps after which the mask is fixed


@pruner("admm", needs=StatisticsLevel.GRAM, products=21.0)
def admm(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keep the weights that are largest in the joint least-squares solution, with its values."""
    norms = inputs.energy.sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    C = inputs.gram / torch.outer(scale, scale)
    C.diagonal().add_(damping)
    root = cholesky(C + RHO * torch.eye(len(C)).to(C))
    dense = W * norms  # 0 for dead inputs, so their weights are dropped first
    goal, V, U = dense @ C, dense, torch.zeros_like(dense)
    for step in range(1, STEPS + 1):
        if step <= MASK_STEPS:
            drop = pattern.drop * (1 - (1 - step / MASK_STEPS) ** 3)
            step_pattern = pattern if pattern.structured else Pattern(0, 0, drop)
            mask = keep_mask((V + U).abs(), step_pattern)
        Z = masked(V + U, mask)
        U += V - Z
        V = torch.cholesky_solve((goal + RHO * (Z - U)).T, root).T
    return masked(V + U, mask) / scale
