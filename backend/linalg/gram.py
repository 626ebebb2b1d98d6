"""Gram matrices: products, Cholesky factors, inverse roots, the largest eigenvalue.

The update H += X^T X of the upper triangle, for X in bfloat16, runs in C++ kernels that accumulate
in float32, since PyTorch would round the result to bfloat16."""

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.errors import ComputeError
from backend.kernels.library import check, kernels, kernels_or_none
from backend.kernels.speeds import KERNELS, PYTORCH, TOKENS, WIDTH, SpeedComparison, choose

PANEL = 256  # columns of a Gram matrix per product of PyTorch
LEAF_SIZE = 128  # largest matrix that LAPACK inverts without recursion
LANCZOS_STEPS, MARGIN = 16, 1.05
DEPENDENT = 1e-5  # relative norm below which a new Lanczos vector is only rounding error
TRIES, FACTOR = 4, 10.0  # attempts to solve, and growth of the damping
Solved = TypeVar("Solved")
_matmul_precision_lock = Lock()  # the precision is a setting of the process


def is_supported(x: Tensor) -> bool:
    """Return True if `add_gram` supports inputs with the dtype and device of `x`."""
    library = kernels_or_none() if x.dtype == torch.bfloat16 and x.is_cpu else None
    return library is not None and bool(library.add_gram)


def is_fast(x: Tensor) -> bool:
    """Return True if the kernels support `x` and are faster than PyTorch on this machine."""
    return is_supported(x) and gram_choice().fastest == KERNELS


@lru_cache
def gram_choice() -> SpeedComparison:
    """Choose between the kernels, which must support bfloat16, and PyTorch for Gram matrices."""
    x = torch.ones(TOKENS, WIDTH, dtype=torch.bfloat16)
    H, X = torch.zeros(WIDTH, WIDTH), x.float()
    runs = {KERNELS: lambda: add_gram(H, x), PYTORCH: lambda: add_gram_in_pytorch(H, X, x.dtype)}
    return choose("Gram matrices", runs)


def add_gram_in_pytorch(H: Tensor, X: Tensor, dtype: torch.dtype) -> None:
    """Add X^T X to the upper triangle of H, including the diagonal, with the fastest products that
    are exact for values of `dtype`.

    Args:
        H: [in, in], float32; modified in place.
        X: inputs [tokens, in] in float32, with values that `dtype` represents.
        dtype: original dtype of the inputs.
    """
    with _matmul_precision_lock:
        previous = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else "highest")
        try:
            for a in range(0, len(H), PANEL):
                H[a : a + PANEL, a:].addmm_(X[:, a : a + PANEL].T, X[:, a:])
        finally:
            torch.set_float32_matmul_precision(previous)


def add_gram(H: Tensor, x: Tensor) -> None:
    """Add x^T x to the upper triangle of H, including the diagonal.

    Args:
        H: [in, in], float32; modified in place.
        x: inputs [tokens, in] that satisfy `is_supported`.
    """
    rows = _contiguous_rows(H, x)
    shape = *rows.shape, torch.get_num_threads()
    check(kernels().add_gram(rows.data_ptr(), H.data_ptr(), *shape))


def _contiguous_rows(H: Tensor, x: Tensor) -> Tensor:
    """Return `x` as a contiguous tensor.

    Raises:
        ValueError: the kernels do not support `x` or H, or their shapes do not match.
    """
    inputs = x.shape[-1]
    fits = x.dim() == 2 and H.shape == (inputs, inputs) and H.is_contiguous()
    if not fits or H.dtype != torch.float32 or not is_supported(x):
        raise ValueError(f"inputs {[*x.shape]} do not fit {[*H.shape]}")
    return x.contiguous()


def packed(H: Tensor) -> Tensor:
    """Pack a symmetric H [in, in] in bfloat16 as the right factor of a descent.

    Returns:
        [outputs / 16, pairs of inputs, 16, 2], with the outputs padded to whole panels.

    Raises:
        ValueError: H is not a matrix that satisfies `is_supported`.
    """
    if not is_supported(H) or H.dim() != 2:
        raise ValueError(f"{H.dtype} {[*H.shape]} cannot be packed")
    inputs, panel = len(H), kernels().panel
    outputs, pairs = -(-inputs // panel) * panel, -(-inputs // 2)
    padded = pad(H, (0, 2 * pairs - inputs, 0, outputs - inputs)).contiguous()
    layout = torch.empty(outputs // 16, pairs, 16, 2, dtype=torch.bfloat16)
    kernels().pack_bf16(padded.data_ptr(), layout.data_ptr(), outputs, 2 * pairs)
    return layout


class NotPositiveDefiniteError(ArithmeticError):
    """A matrix has no Cholesky factor; a larger diagonal would help."""


def cholesky(H: Tensor) -> Tensor:
    """Compute the lower triangular L with L L^T = H. Raises `NotPositiveDefiniteError`."""
    root, info = torch.linalg.cholesky_ex(H)
    if info.item():
        raise NotPositiveDefiniteError
    return root


def inverse_root(H: Tensor, damping: float) -> Tensor:
    """Compute the upper triangular U [in, in] with U^T U = (H + damping mean(diag H) I)^-1.

    With J the reversal of rows and columns, and J H J = L L^T, U = J L^-1 J. This takes half the
    work of inverting H and factorizing the inverse. Dead inputs (zero energy) need no special case,
    because the damping makes H regular. If all inputs are dead, the mean is replaced by 1.

    Raises:
        NotPositiveDefiniteError: more damping would help.
    """
    H = H.flip(0, 1)
    energy = H.diagonal()
    energy += damping * (energy.mean().item() or 1.0)
    return _inverse_cholesky(H).flip(0, 1).contiguous()


def _inverse_cholesky(H: Tensor) -> Tensor:
    """Compute the lower triangular L^-1, where H = L L^T, by recursion.

    Most of the work is matrix products:

    H = (A B^T; B C)      L = (L_A 0; M L_S),  M = B L_A^-T,  L_S L_S^T = C - M M^T
                          L^-1 = (L_A^-1 0; -L_S^-1 M L_A^-1 L_S^-1)
    """
    n = len(H)
    if n <= LEAF_SIZE:
        return torch.linalg.solve_triangular(cholesky(H), torch.eye(n).to(H), upper=False)
    h = n // 2
    inverse = torch.zeros_like(H)
    first = inverse[:h, :h] = _inverse_cholesky(H[:h, :h])
    M = H[h:, :h] @ first.T
    second = inverse[h:, h:] = _inverse_cholesky(torch.addmm(H[h:, h:], M, M.T, alpha=-1))
    inverse[h:, :h] = second @ (M @ first).neg_()
    return inverse


def largest_eigenvalue(H: Tensor) -> float:
    """Estimate lambda_max of a positive semidefinite H [n, n], plus a margin of 5 %.

    The Lanczos iteration computes the largest eigenvalue of Q H Q^T, where the orthonormal rows of
    Q span v, H v, H^2 v, ... (Golub and Van Loan, 10.1). It approaches lambda_max from below. The
    margin is needed because a descent diverges if its step, 1 / lambda_max, is too large."""
    steps, generator = min(LANCZOS_STEPS, len(H)), torch.Generator().manual_seed(0)
    unit = H.diagonal().amax()  # scale of H, so that no square overflows or underflows float32
    v = torch.randn(len(H), generator=generator).to(H)
    Q, P = H.new_zeros(steps, len(H)), H.new_zeros(steps, len(H))
    for i in range(steps):
        size = torch.linalg.vector_norm(v)
        for _ in range(2):  # the second pass removes the rounding error of the first
            v = v - Q[:i].T @ (Q[:i] @ v)
        new_size = torch.linalg.vector_norm(v)
        # 0 once the rows of Q span an invariant subspace
        Q[i] = torch.where(new_size > DEPENDENT * size, v / new_size, 0)
        P[i] = v = H @ Q[i] / unit
    return MARGIN * (torch.linalg.eigvalsh(Q @ P.T)[-1] * unit).item() if unit > 0 else 0.0


def search_damping(
    solve: Callable[[float], Solved],
    damping: float,
    log: Callable[[str], None],
    name: str,
    failed: tuple[str, str],
) -> Solved:
    """Call `solve` with a damping; raise it tenfold while H is not positive definite, up to three
    times.

    Args:
        solve: function of the damping.
        damping: initial damping.
        log: called with a line on every increase.
        name: name of the layer.
        failed: participle for the error message, such as "pruned", and advice.

    Raises:
        ComputeError: no damping helped.
    """
    for attempt in range(TRIES):
        if attempt:
            damping *= FACTOR
            log(f"{name}: Hessian not positive definite, damping raised to {damping:g}.")
        try:
            return solve(damping)
        except NotPositiveDefiniteError:
            continue
    participle, advice = failed
    raise ComputeError(
        f"{name} could not be {participle}.",
        f"Its Hessian is not positive definite, even with a damping of {damping:g}.",
        advice,
        field="damping",
    )
