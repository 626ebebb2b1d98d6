"""Step 2, re-dense: from W_sparse back to dense weights that retain traces of the first pruning.

All weights, including the zeros, move toward the dense outputs of the layer:

    W_redense = argmin_W  1/2 tr(D H D^T) + a1 |W|_1,  D = W - W_dense,  from W_sparse

If H has full rank and there is no penalty, the minimum is W_dense itself, which would undo step 1.
The descent therefore stops early. It first restores the directions of the inputs with most energy,

    W_t = W_dense + (W_sparse - W_dense) (I - eta H)^t     after t steps of size eta,

and leaves the directions with little energy as pruned. The acceleration of the descent, and the
scaling of the penalty by layer, are our choices.

Accelerated proximal gradient on the reconstruction error of a layer, also used by
`weight_adjustment`:

    minimize   1/2 tr(D H D^T) + g(W),    D = W - W_dense
    V     = W_t + beta_t (W_t - W_t-1)                 momentum, beta as in FISTA (Beck & Teboulle)
    W_t+1 = prox_g( V - (V - W_dense) H / lambda_max(H) )

The product with H dominates the cost of a step. It is linear in W, so the product for V follows
from the products for W_t and W_t-1. A step therefore needs one product, which also gives the error
of the iterate at no extra cost.

Precision: everything is float32 except this product, which is computed in bfloat16 if the inputs
were bfloat16. D, H and (in PyTorch) the entries of D H are rounded to 8 significant bits;
accumulators are float32. D shrinks during the descent, and its rounding error with it: final errors
match float32 within a tenth of a percent, in about 0.6 of the time (docs/results/cost.md).

Rows of W are independent. A chunk of rows goes through all steps before the next chunk, so that the
working set of a step stays in the CPU cache. On a CPU with bfloat16 instructions the descent runs
in C++ (`descend`) without the global interpreter lock, one chunk of rows per thread at a time. The
PyTorch version (`proximal_descent`) is the reference. The algorithms are the same, except that C++
does not round the entries of D H."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from backend.calibration.second_moments import InputStatistics
from backend.kernels.library import Descent, check, kernels, kernels_or_none
from backend.kernels.speeds import KERNELS, PYTORCH, TOKENS, WIDTH, SpeedComparison, choose
from backend.models.threads import parallel_map

# Operations after a gradient step; see `descend`.
SHRINK, FIXED, ROWS = 0, 1, -1
GROUPS = (2, 4, 8, 16)
KINDS = (SHRINK, FIXED, ROWS, *GROUPS)
CHUNK_ROWS = 256  # maximum rows per chunk on a CPU
L1_PENALTY = 0.03  # relative to mean(diag H) mean|W_dense|


def is_supported(inputs: InputStatistics, kind: int) -> bool:
    """Return True if `descend` supports this operation and a layer with these inputs."""
    return kind in KINDS and kernels_or_none() is not None and inputs.packed_gram is not None


def is_fast(inputs: InputStatistics, kind: int) -> bool:
    """Return True if `descend` supports the descent and is faster than PyTorch on this machine."""
    return is_supported(inputs, kind) and descent_choice().fastest == KERNELS


@lru_cache
def descent_choice() -> SpeedComparison:
    """Choose between `descend`, which must be supported, and PyTorch for descents."""
    start, dense = torch.ones(TOKENS, WIDTH), torch.zeros(TOKENS, WIDTH)
    inputs = InputStatistics(1, torch.ones(WIDTH), torch.eye(WIDTH), torch.bfloat16)
    inputs.__dict__["largest_eigenvalue"] = 1.0  # known, and not part of a step

    def in_pytorch() -> None:
        H = inputs.rounded_gram
        deque(proximal_descent(start, dense, H, 1.0, 1, lambda V, _: V), maxlen=0)

    runs = {KERNELS: lambda: descend(start, dense, inputs, 1, SHRINK), PYTORCH: in_pytorch}
    return choose("descents", runs)


def descend(
    start: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, kind: int, amount: float = 0
) -> tuple[Tensor, Tensor]:
    """Run `proximal_descent` in C++.

    Args:
        start: first iterate [rows, in], float32, contiguous.
        dense: original weights [rows, in], float32, contiguous.
        inputs: statistics of the layer's inputs.
        steps: number of steps.
        kind: operation after each gradient step. SHRINK: soft thresholding by `amount` times the
            step size. FIXED: zeros of the start stay zero. ROWS: each row keeps as many weights as
            at the start. Any of GROUPS: each group of this size keeps `amount` weights.
        amount: parameter of the operation.

    Returns:
        W [rows, in], and errors D H D^T [2, rows] of the start and of W. With SHRINK, W is the last
        iterate; otherwise each row of W is the iterate with its lowest error.

    Raises:
        ValueError: the operation, a shape, a dtype or the number of steps is not supported.
    """
    rows, columns = len(start), len(inputs.gram)
    if not is_supported(inputs, kind) or not 0 <= steps < 2**31 - 1:
        raise ValueError(f"{steps} steps of kind {kind} are not computed here")
    shapes_match = start.shape == dense.shape == (rows, columns) and inputs.gram.shape == (
        columns,
        columns,
    )
    supported = all(
        x.is_cpu and x.dtype == torch.float32 and x.is_contiguous() for x in (start, dense)
    )
    if not shapes_match or not supported or (kind in GROUPS and columns % kind):
        raise ValueError(f"{[*start.shape]} {start.dtype} and {[*dense.shape]} do not fit")
    H, W, errors = inputs.packed_gram, torch.empty_like(start), torch.empty(3, rows)
    assert H is not None  # guaranteed by `is_supported`
    step_size = 1 / inputs.largest_eigenvalue if inputs.largest_eigenvalue > 0 else 0.0
    keep = 0 if kind == SHRINK else int(amount)
    pointers = map(Tensor.data_ptr, (start, dense, H, W, errors))
    shape = rows, columns, steps if step_size else 0, kind, keep
    task = Descent(*pointers, *shape, step_size, amount * step_size)
    check(kernels().descend(task, torch.get_num_threads()))
    return W, errors[:2]


def by_rows(solve: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply `solve` to chunks of rows of the tensors [out, in], in parallel on a CPU."""
    if tensors[0].device.type != "cpu":
        return solve(*tensors)
    rows, threads = len(tensors[0]), torch.get_num_threads()
    chunks = -(-rows // (CHUNK_ROWS * threads)) * threads  # the same number for each thread
    parts = zip(*(tensor.split(-(-rows // chunks)) for tensor in tensors), strict=True)
    return torch.cat(parallel_map(lambda part: solve(*part), [*parts]))


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

    Memory is reused: copy tensors that must outlive the next step. Without input energy only the
    start is yielded.

    Args:
        start: first iterate [out, in].
        dense: original weights [out, in].
        H: second moments [in, in] in float32, or in bfloat16 for products in that precision.
        largest_eigenvalue: largest eigenvalue of H, or an upper bound.
        steps: number of steps.
        prox: (point, step size) -> next iterate; may work in place.
        last_error: compute D_t H of the last iterate, which no step needs.
    """
    W, W_old, D = start.clone(), start.clone(), start - dense
    P = _product(D, H, torch.empty_like(D))
    P_old = P.clone()
    yield W, D, P
    if not largest_eigenvalue > 0:  # 0 or NaN
        return
    t, step_size = 1.0, 1 / largest_eigenvalue
    for remaining_steps in reversed(range(steps)):
        t, t_old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        beta = (t_old - 1) / t
        V = torch.lerp(W_old, W, 1 + beta, out=W_old)
        gradient = torch.lerp(P_old, P, 1 + beta, out=P_old)
        W, W_old = prox(V.sub_(gradient, alpha=step_size), step_size), W
        torch.sub(W, dense, out=D)
        if remaining_steps or last_error:
            P, P_old = _product(D, H, gradient), P
        yield W, D, P


def _product(D: Tensor, H: Tensor, out: Tensor) -> Tensor:
    """Compute D H in the precision of H and write it to `out`, in float32."""
    return torch.mm(D, H, out=out) if H.dtype == D.dtype else out.copy_(D.to(H.dtype) @ H)


def redense(
    sparse: Tensor, dense: Tensor, inputs: InputStatistics, steps: int, l1: float = L1_PENALTY
) -> Tensor:
    """Compute W_redense [out, in] with `steps` steps of FISTA.

    Args:
        sparse: weights after the first pruning [out, in].
        dense: original weights [out, in].
        inputs: statistics of the layer's inputs.
        steps: number of steps.
        l1: relative penalty, a1 = l1 mean(diag H) mean|W_dense|.
    """
    a1 = max(0.0, l1 * inputs.energy.mean().item() * dense.abs().mean().item())

    if is_fast(inputs, SHRINK):
        return descend(sparse.contiguous(), dense.contiguous(), inputs, steps, SHRINK, a1)[0]

    def soft_threshold(point: Tensor, step_size: float) -> Tensor:
        return softshrink(point, a1 * step_size) if a1 > 0 else point

    H, largest_eigenvalue = inputs.rounded_gram, inputs.largest_eigenvalue

    def solve_rows(sparse: Tensor, dense: Tensor) -> Tensor:
        iterates = proximal_descent(
            sparse, dense, H, largest_eigenvalue, steps, soft_threshold, last_error=False
        )
        last_W, _, _ = deque(iterates, maxlen=1)[0]
        return last_W

    return by_rows(solve_rows, sparse, dense)
