"""Accelerated proximal gradient on a layer's reconstruction error.

    minimise   1/2 tr(D H D^T) + a2/2 |W|^2 + g(W),    D = W - W_dense
    V     = W_t + beta_t (W_t - W_t-1)                 momentum, beta as in FISTA (Beck & Teboulle)
    W_t+1 = prox_g( V - ((V - W_dense) H + a2 V) / (lambda_max(H) + a2) )

The product with H is the cost of a step, and it is linear in W: that of V follows from those of
W_t and W_t-1, so each step has one product, and the error of every iterate comes for free.

Precision: weights, sums and everything else are float32. Only that product is computed in bfloat16
units where the inputs were bfloat16: D and H are rounded to 8 bits, and so is each entry of D H,
summed in float32. D shrinks on the way, and its rounding with it: the errors it ends with are those
of float32 within a tenth of a percent, in about 0.6 of the time (`make bench-solvers`).

Rows of W do not know each other. They go through all steps some at a time, so that what a step
touches stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS = 128  # at a time, on a CPU


def by_rows(solve: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`solve` applied to some rows of the tensors [out, in] after the other."""
    rows = ROWS if tensors[0].device.type == "cpu" else len(tensors[0])
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([solve(*part) for part in parts])


def proximal_descent(
    start: Tensor,
    dense: Tensor,
    H: Tensor,
    largest_eigenvalue: float,
    steps: int,
    prox: Callable[[Tensor, float], Tensor],
    a2: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields W_t, D_t = W_t - W_dense and D_t H, all [out, in]: of the start, then of each iterate.

    They live in memory that is used again: copy what is to outlive the next step. Only the start
    comes when the inputs carry no energy.

    Args:
        H: [in, in], float32, or bfloat16 for products in that precision.
        largest_eigenvalue: of H, not too low.
        prox: (point, step size) -> the next iterate; may work in place.
    """
    curvature = largest_eigenvalue + a2
    W, W_old, D = start.clone(), start.clone(), start - dense
    P = _product(D, H, torch.empty_like(D))
    P_old = P.clone()
    yield W, D, P
    t = 1.0
    for _ in range(steps if curvature > 0 else 0):
        t, t_old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        beta = (t_old - 1) / t
        V = torch.lerp(W_old, W, 1 + beta, out=W_old)
        gradient = torch.lerp(P_old, P, 1 + beta, out=P_old)
        if a2 > 0:
            gradient.add_(V, alpha=a2)
        W, W_old = prox(V.sub_(gradient, alpha=1 / curvature), 1 / curvature), W
        torch.sub(W, dense, out=D)
        P, P_old = _product(D, H, gradient), P
        yield W, D, P


def _product(D: Tensor, H: Tensor, out: Tensor) -> Tensor:
    """D H in the precision of H, into `out`, which is float32."""
    return torch.mm(D, H, out=out) if H.dtype == D.dtype else out.copy_(D.to(H.dtype) @ H)
