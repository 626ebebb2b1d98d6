"""Gram matrices: products, Cholesky factors, inverse roots, the largest eigenvalue.

Products of bfloat16 inputs are made in the instructions for it, of which PyTorch gives only
products that are rounded to bfloat16: H += X^T X with float32 sums, the half on and above the
diagonal; and tr(D H D^T), the sum of the entries of D^T D times those of H, from that half."""

from collections.abc import Callable
from ctypes import addressof, c_double
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.errors import ComputeError
from backend.kernels.library import check, kernels, kernels_or_none

LEAF_SIZE = 128  # size up to which LAPACK inverts directly
LANCZOS_STEPS, MARGIN = 16, 1.05
DEPENDENT = 1e-5  # a new direction below this share of its vector is rounding
TRIES, FACTOR = 4, 10.0
Solved = TypeVar("Solved")


def is_fast(x: Tensor) -> bool:
    """Whether `add_gram` takes inputs like `x`."""
    library = kernels_or_none() if x.dtype == torch.bfloat16 and x.is_cpu else None
    return library is not None and bool(library.add_gram)


def add_gram(H: Tensor, x: Tensor) -> None:
    """Add x^T x to H [in, in], on and above the diagonal. `x`: [tokens, in], see `is_fast`."""
    rows = _rows(H, x)
    shape = *rows.shape, torch.get_num_threads()
    check(kernels().add_gram(rows.data_ptr(), H.data_ptr(), *shape))


def gram_dot(H: Tensor, x: Tensor) -> float:
    """tr(x H x^T) of x [tokens, in], see `is_fast`, and a symmetric H [in, in], of which the half
    on and above the diagonal is read."""
    rows, total = _rows(H, x), c_double()
    places = rows.data_ptr(), H.data_ptr(), addressof(total)
    check(kernels().gram_dot(*places, *rows.shape, torch.get_num_threads()))
    return total.value


def _rows(H: Tensor, x: Tensor) -> Tensor:
    """x without gaps. Raises ValueError: the kernels do not take it, or it does not fit H."""
    inputs = x.shape[-1]
    fits = x.dim() == 2 and H.shape == (inputs, inputs) and H.is_contiguous()
    if not fits or H.dtype != torch.float32 or not is_fast(x):
        raise ValueError(f"inputs {[*x.shape]} do not fit {[*H.shape]}")
    return x.contiguous()


def packed(H: Tensor) -> Tensor:
    """A symmetric H [in, in] in bfloat16 as the right factor of a descent, its inputs padded to
    whole panels: [panels * panel / 16, pairs of inputs, 16, 2]."""
    if not is_fast(H) or H.dim() != 2:
        raise ValueError(f"{H.dtype} {[*H.shape]} cannot be packed")
    inputs, panel = len(H), kernels().panel
    outputs, pairs = -(-inputs // panel) * panel, -(-inputs // 2)
    whole = pad(H, (0, 2 * pairs - inputs, 0, outputs - inputs)).contiguous()
    words = torch.empty(outputs // 16, pairs, 16, 2, dtype=torch.bfloat16)
    kernels().pack_bf16(whole.data_ptr(), words.data_ptr(), outputs, 2 * pairs)
    return words


class NotPositiveDefiniteError(ArithmeticError):
    """A matrix without a Cholesky factor; a larger diagonal would help."""


def cholesky(H: Tensor) -> Tensor:
    """Lower triangular L with L L^T = H. Raises NotPositiveDefiniteError: H has none."""
    root, info = torch.linalg.cholesky_ex(H)
    if info.item():
        raise NotPositiveDefiniteError
    return root


def inverse_root(H: Tensor, damping: float) -> Tensor:
    """U [in, in], upper triangular with U^T U = (H + damping mean(diag H) I)^-1.

    With J the reversal of rows and columns and J H J = L L^T, U = J L^-1 J: half the work of
    inverting H and factorizing the inverse. Dead inputs (zero energy) need no special case: the
    damping makes H regular. Where all inputs are dead, the mean is replaced by 1. Raises
    NotPositiveDefiniteError: more damping would help."""
    H = H.flip(0, 1)
    energy = H.diagonal()
    energy += damping * (energy.mean().item() or 1.0)
    return _inverse_cholesky(H).flip(0, 1).contiguous()


def _inverse_cholesky(H: Tensor) -> Tensor:
    """L^-1, lower triangular, where H = L L^T. Recursive, so that most work is matrix products:

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
    """lambda_max of a positive semidefinite H [n, n], 5 % above what the Lanczos iteration finds.

    That is the largest eigenvalue of Q H Q^T, for orthonormal rows Q that span v, H v, H^2 v ..
    (Golub and Van Loan, 10.1). It approaches lambda_max from below, and a descent with a step that
    is too large diverges."""
    steps, generator = min(LANCZOS_STEPS, len(H)), torch.Generator().manual_seed(0)
    unit = H.diagonal().amax()  # in which no square leaves the range of float32
    v = torch.randn(len(H), generator=generator).to(H)
    Q, P = H.new_zeros(steps, len(H)), H.new_zeros(steps, len(H))
    for i in range(steps):
        size = torch.linalg.vector_norm(v)
        for _ in range(2):  # the second time removes what rounding has left by the first
            v = v - Q[:i].T @ (Q[:i] @ v)
        new = torch.linalg.vector_norm(v)
        Q[i] = torch.where(new > DEPENDENT * size, v / new, 0)  # 0: nothing new is to be found
        P[i] = v = H @ Q[i] / unit
    return MARGIN * (torch.linalg.eigvalsh(Q @ P.T)[-1] * unit).item() if unit > 0 else 0.0


def search_damping(
    solve: Callable[[float], Solved],
    damping: float,
    log: Callable[[str], None],
    name: str,
    failed: tuple[str, str],
) -> Solved:
    """`solve(damping)`; while H is not positive definite the damping is raised tenfold, up to three
    times. `log`: called with a line on every increase. `name`: of the layer. `failed`: what could
    not be done to it, such as "pruned", and what to do about it. Raises ComputeError: no damping
    helped."""
    for tried in range(TRIES):
        if tried:
            damping *= FACTOR
            log(f"{name}: Hessian not positive definite, damping raised to {damping:g}.")
        try:
            return solve(damping)
        except NotPositiveDefiniteError:
            continue
    done, do = failed
    raise ComputeError(
        f"{name} could not be {done}.",
        f"Its Hessian is not positive definite, even with a damping of {damping:g}.",
        do,
        field="damping",
    )
