"""Accelerated proximal gradient on a layer's reconstruction error.

    minimise   1/2 tr(D H D^T) + a2/2 |W|^2 + g(W),    D = W - W_dense
    V     = W_t + beta_t (W_t - W_t-1)                 momentum, beta as in FISTA (Beck & Teboulle)
    W_t+1 = prox_g( V - ((V - W_dense) H + a2 V) / (lambda_max(H) + a2) )

The product with H is the cost of a step, and it is linear in W: that of V follows from those of
W_t and W_t-1, so each step has one product, and the error of every iterate comes for free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROUNDS, MARGIN = 50, 1.05


def largest_eigenvalue(H: Tensor) -> float:
    """lambda_max of a positive semidefinite H [n, n], 5 % above what power iteration finds.

    The iteration comes from below, and the descent diverges when the figure is too low.
    """
    v = torch.randn(len(H), generator=torch.Generator().manual_seed(0)).to(H)
    norm = v.norm()
    for _ in range(ROUNDS):
        v = H @ (v / norm.clamp_min(torch.finfo(v.dtype).tiny))
        norm = v.norm()
    return MARGIN * norm.item()


def proximal_descent(
    start: Tensor,
    dense: Tensor,
    H: Tensor,
    steps: int,
    prox: Callable[[Tensor, float], Tensor],
    a2: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the start and then every iterate W_t [out, in], each with its error by row [out].

    The error of a row d of D is d H d^T. Only the start comes when the inputs carry no energy.

    Args:
        prox: (point, step size) -> the next iterate; may work in place.
    """

    def product(W: Tensor) -> tuple[Tensor, Tensor]:
        D = W - dense
        P = D @ H
        return P, torch.linalg.vecdot(P, D)

    curvature = largest_eigenvalue(H) + a2
    W = W_old = start
    P, error = product(start)
    P_old = P
    yield W, error
    t = 1.0
    for _ in range(steps if curvature > 0 else 0):
        t, t_old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        beta = (t_old - 1) / t
        V = torch.lerp(W_old, W, 1 + beta)
        gradient = torch.lerp(P_old, P, 1 + beta)
        if a2 > 0:
            gradient.add_(V, alpha=a2)
        W, W_old = prox(V.sub_(gradient, alpha=1 / curvature), 1 / curvature), W
        P_old, (P, error) = P, product(W)
        yield W, error
