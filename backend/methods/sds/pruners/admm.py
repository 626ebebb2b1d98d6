"""A pruner that weighs all columns at once: ADMM with a gradual mask (Boža, arXiv 2401.02938).

With inputs scaled to unit energy, V = W diag(n), n_j = sqrt(H_jj), and C = H scaled so + damping I:

    minimise tr((V - V_dense) C (V - V_dense)^T)   with V as sparse as the pattern asks

    V = (V_dense C + rho (Z - U)) (C + rho I)^-1       least squares, near the sparse copy
    Z = mask * (V + U)                                 sparse copy
    U = U + V - Z                                      what still separates the two

One factor serves all steps. The mask holds the largest |V + U|. A percentage is reached gradually,
as s_t = s (1 - (1 - t / T)^3), and then the mask stays. ALPS belongs to the same family.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.methods.calibration import InputStatistics, StatisticsLevel
from backend.methods.linalg import cholesky
from backend.methods.sds.masks import keep_mask, masked
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.pruners import pruner

STEPS, SETTLED, RHO = 20, 15, 1.0  # SETTLED: the step from which the mask stays, T


@pruner("admm", needs=StatisticsLevel.GRAM)
def admm(W: Tensor, inputs: InputStatistics, pattern: Pattern, damping: float) -> Tensor:
    """Keeps what least squares on all columns together finds largest, with its weights."""
    norms = inputs.energy.sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    C = inputs.gram / torch.outer(scale, scale)
    C.diagonal().add_(damping)
    root = cholesky(C + RHO * torch.eye(len(C)).to(C))
    dense = W * norms  # nothing of a dead input: its weights go first
    wanted, V, U = dense @ C, dense, torch.zeros_like(dense)
    for step in range(1, STEPS + 1):
        if step <= SETTLED:
            mask = keep_mask((V + U).abs(), _gradual(pattern, step / SETTLED))
        Z = masked(V + U, mask)
        U += V - Z
        V = torch.cholesky_solve((wanted + RHO * (Z - U)).T, root).T
    return masked(V + U, mask) / scale


def _gradual(pattern: Pattern, share: float) -> Pattern:
    """The pattern after a `share` of the steps in which it is reached."""
    if pattern.structured:
        return pattern
    return Pattern(0, 0, pattern.drop * (1 - (1 - share) ** 3))
