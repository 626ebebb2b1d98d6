"""Step 2, re-dense: from W_sparse back to dense weights that keep a memory of the first pruning.

All weights, the zeros included, move until the layer reproduces the dense outputs:

    W_redense = argmin_W  1/2 tr(D H D^T) + a1 |W|_1 + a2/2 |W|^2,  D = W - W_dense,  from W_sparse

With H of full rank and no penalty the minimum is W_dense itself, which would undo step 1, so the
descent is stopped early. It restores the strong input directions first,

    W_t = W_dense + (W_sparse - W_dense) (I - eta H)^t     after t steps of size eta,

and leaves the weak ones as pruned. Three solvers:

    gram    accelerated proximal gradient on H, penalties relative to the layer (ours; default)
    ridge   (W_dense H + a W_sparse) (H + a I)^-1, a ~ 1 / (eta t)              (ours)
    sgd     as in the paper: one segment per step, penalties on the mean of |W| and W^2; slow
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from backend.methods.calibration import InputStatistics, StatisticsLevel
from backend.methods.linalg import cholesky
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.proximal_gradient import by_rows, proximal_descent

Solve = Callable[[Tensor, Tensor, InputStatistics, SDSConfig], Tensor]


@dataclass(frozen=True)
class Solver:
    """A re-dense solver and the statistics it needs of a layer's inputs."""

    solve: Solve
    needs: StatisticsLevel


def by_gram(sparse: Tensor, dense: Tensor, inputs: InputStatistics, config: SDSConfig) -> Tensor:
    """`redense_steps` steps of FISTA from W_sparse. All weights [out, in].

    a1 = l1 mean(diag H) mean|W_dense|,  a2 = l2 mean(diag H).
    """
    energy = inputs.energy.mean().item()
    a1, a2 = config.l1 * energy * dense.abs().mean().item(), config.l2 * energy

    def soft_threshold(point: Tensor, step: float) -> Tensor:
        return softshrink(point, a1 * step) if a1 > 0 else point

    def solve_rows(sparse: Tensor, dense: Tensor) -> Tensor:
        problem = (sparse, dense, inputs.rounded_gram, inputs.largest_eigenvalue)
        path = proximal_descent(*problem, config.redense_steps, soft_threshold, a2)
        return deque(path, maxlen=1)[0][0]

    return by_rows(solve_rows, sparse, dense)


def by_ridge(sparse: Tensor, dense: Tensor, inputs: InputStatistics, config: SDSConfig) -> Tensor:
    """Closed form, W_dense + a (W_sparse - W_dense) (H + a I)^-1 with a = ridge mean(diag H)."""
    a = config.ridge * inputs.energy.mean()
    if a == 0:
        return sparse
    H = inputs.gram + torch.diag(a.expand(len(inputs.gram)))
    W = dense + a * torch.cholesky_solve((sparse - dense).T, cholesky(H)).T
    return torch.where(inputs.energy == 0, sparse, W)


def by_sgd(sparse: Tensor, dense: Tensor, inputs: InputStatistics, config: SDSConfig) -> Tensor:
    """Stochastic gradient descent on the mean squared error, one shuffled segment per step.

    Per segment: mean over tokens and outputs of ((W - W_dense) x)^2 + l1 mean|W| + l2 mean W^2.
    """
    W = sparse.clone()
    order = torch.Generator().manual_seed(0)
    for _ in range(config.sgd_epochs):
        for segment in torch.randperm(len(inputs.segments), generator=order).tolist():
            gradient = ((W - dense) @ inputs.segments[segment]).mul_(2 / len(W))
            gradient.add_(W.sign(), alpha=config.l1 / W.numel())
            gradient.add_(W, alpha=2 * config.l2 / W.numel())
            W.sub_(gradient, alpha=config.sgd_rate)
    return W


SOLVERS: dict[str, Solver] = {
    "gram": Solver(by_gram, StatisticsLevel.GRAM),
    "ridge": Solver(by_ridge, StatisticsLevel.GRAM),
    "sgd": Solver(by_sgd, StatisticsLevel.SEGMENTS),
}
