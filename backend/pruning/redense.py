"""Step 2, re-dense: from W_sparse back to dense weights that keep a memory of the first pruning.

All weights, the zeros included, move until the layer reproduces the dense outputs:

    W_redense = argmin_W  1/2 tr(D H D^T) + a1 |W|_1,  D = W - W_dense,  from W_sparse

With H of full rank and no penalty the minimum is W_dense itself, which would undo step 1, so the
descent is stopped early. It restores the strong input directions first,

    W_t = W_dense + (W_sparse - W_dense) (I - eta H)^t     after t steps of size eta,

and leaves the weak ones as pruned. The descent is accelerated, and the penalty is relative to the
layer (both ours).

Accelerated proximal gradient on a layer's reconstruction error, here and in `weight_adjustment`:

    minimize   1/2 tr(D H D^T) + g(W),    D = W - W_dense
    V     = W_t + beta_t (W_t - W_t-1)                 momentum, beta as in FISTA (Beck & Teboulle)
    W_t+1 = prox_g( V - (V - W_dense) H / lambda_max(H) )

The product with H dominates the cost of a step. It is linear in W, so that of V follows from those
of W_t and W_t-1: one product per step, and the error of every iterate comes for free.

Precision: everything is float32 except that product, which is computed in bfloat16 where the inputs
were bfloat16: D, H and, by PyTorch, the entries of D H are rounded to 8 bits, sums are float32. D
shrinks during the descent, and its rounding error with it: final errors match float32 within a
tenth of a percent, in about 0.6 of the time (docs/results/cost.md).

Rows of W are independent. They are processed in chunks through all steps, so that the working set
of a step stays in the CPU cache. On a CPU with instructions for bfloat16 they are C++ (`descend`),
of which the descent in PyTorch is the reference, without the interpreter's lock: each thread takes
a few rows at a time through all steps. The entries of D H are not rounded, as PyTorch's are; else
it is the same algorithm."""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from backend.calibration.second_moments import InputStatistics
from backend.kernels.library import Descent, check, kernels, kernels_or_none
from backend.models.threads import side_by_side

SHRINK, FIXED, ROWS = 0, 1, -1  # what follows a gradient step; others: the largest of groups
GROUPS = (2, 4, 8, 16)
KINDS = (SHRINK, FIXED, ROWS, *GROUPS)
CHUNK_ROWS = 256  # per chunk at most, on a CPU
L1_PENALTY = 0.03  # relative to mean(diag H) mean|W_dense|


def usable(inputs: InputStatistics, kind: int) -> bool:
    """Whether `descend` takes weights with such inputs, and this kind of step."""
    return kind in KINDS and kernels_or_none() is not None and inputs.packed_gram is not None


def descend(
    start: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, kind: int, amount: float = 0
) -> tuple[Tensor, Tensor]:
    """W [rows, in] after `steps` steps of `proximal_descent`, and errors [2, rows].

    Args:
        start, dense: [rows, in], float32, without gaps.
        kind: of what follows each gradient step. SHRINK: weights become smaller by `amount` times
            its size. FIXED: zeros of the start stay. ROWS: as many of each row are kept as at the
            start. Else: `amount` of each group of `kind`. After thresholding, W is each row where
            its error was lowest, and the errors D H D^T are those of the start and of W.

    Raises ValueError: this is not `usable`, or does not fit."""
    rows, columns = len(start), len(inputs.gram)
    if not usable(inputs, kind) or not 0 <= steps < 2**31 - 1:
        raise ValueError(f"{steps} steps of kind {kind} are not computed here")
    alike = start.shape == dense.shape == (rows, columns) and inputs.gram.shape == (columns,) * 2
    whole = all(x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in (start, dense))
    if not alike or not whole or (kind in GROUPS and columns % kind):
        raise ValueError(f"{[*start.shape]} {start.dtype} and {[*dense.shape]} do not fit")
    H, W, errors = inputs.packed_gram, torch.empty_like(start), torch.empty(3, rows)
    assert H is not None  # it is usable
    size = 1 / inputs.largest_eigenvalue if inputs.largest_eigenvalue > 0 else 0.0
    keep = 0 if kind == SHRINK else int(amount)
    places = map(Tensor.data_ptr, (start, dense, H, W, errors))
    shape = rows, columns, steps if size else 0, kind, keep
    task = Descent(*places, *shape, size, amount * size)
    check(kernels().descend(task, torch.get_num_threads()))
    return W, errors[:2]


def by_rows(solve: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply `solve` to the tensors [out, in] in chunks of rows, on a CPU side by side."""
    if tensors[0].device.type != "cpu":
        return solve(*tensors)
    count, threads = len(tensors[0]), torch.get_num_threads()
    chunks = -(-count // (CHUNK_ROWS * threads)) * threads  # as many for each thread
    parts = zip(*(tensor.split(-(-count // chunks)) for tensor in tensors), strict=True)
    return torch.cat(side_by_side(lambda part: solve(*part), [*parts]))


def proximal_descent(
    start: Tensor,
    dense: Tensor,
    H: Tensor,
    largest_eigenvalue: float,
    steps: int,
    prox: Callable[[Tensor, float], Tensor],
    last_error: bool = True,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield W_t, D_t = W_t - W_dense and D_t H, all [out, in], for the start and each iterate.

    Their memory is reused: copy what must outlive the next step. Without input energy only the
    start is yielded. `H`: [in, in], float32, or bfloat16 for products in that precision.
    `largest_eigenvalue`: of H, or an upper bound. `prox`: (point, step size) -> next iterate; may
    work in place. `last_error`: whether D_t H of the last iterate is wanted: no step needs it."""
    W, W_old, D = start.clone(), start.clone(), start - dense
    P = _product(D, H, torch.empty_like(D))
    P_old = P.clone()
    yield W, D, P
    t, step = 1.0, 1 / largest_eigenvalue if largest_eigenvalue > 0 else 0.0
    for left in reversed(range(steps if largest_eigenvalue > 0 else 0)):
        t, t_old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        beta = (t_old - 1) / t
        V = torch.lerp(W_old, W, 1 + beta, out=W_old)
        gradient = torch.lerp(P_old, P, 1 + beta, out=P_old)
        W, W_old = prox(V.sub_(gradient, alpha=step), step), W
        torch.sub(W, dense, out=D)
        if left or last_error:
            P, P_old = _product(D, H, gradient), P
        yield W, D, P


def _product(D: Tensor, H: Tensor, out: Tensor) -> Tensor:
    """D H in the precision of H, into `out`, which is float32."""
    return torch.mm(D, H, out=out) if H.dtype == D.dtype else out.copy_(D.to(H.dtype) @ H)


def redense(
    sparse: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, l1: float = L1_PENALTY
) -> Tensor:
    """W_redense [out, in] after `steps` steps of FISTA; a1 = l1 mean(diag H) mean|W_dense|."""
    a1 = max(0.0, l1 * inputs.energy.mean().item() * dense.abs().mean().item())

    if usable(inputs, SHRINK):
        whole = sparse.contiguous(), dense.contiguous()
        return descend(*whole, inputs, steps, SHRINK, a1)[0]

    def soft_threshold(point: Tensor, step: float) -> Tensor:
        return softshrink(point, a1 * step) if a1 > 0 else point

    H, largest = inputs.rounded_gram, inputs.largest_eigenvalue

    def solve_rows(sparse: Tensor, dense: Tensor) -> Tensor:
        path = proximal_descent(sparse, dense, H, largest, steps, soft_threshold, False)
        return deque(path, maxlen=1)[0][0]

    return by_rows(solve_rows, sparse, dense)
