"""Linear algebra of Gram matrices: Cholesky factors, inverse roots, the largest eigenvalue."""

import torch
from torch import Tensor

LEAF_SIZE = 128  # size up to which LAPACK inverts directly
LANCZOS_STEPS, MARGIN = 16, 1.05
DEPENDENT = 1e-5  # a new direction below this share of its vector is rounding


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
    inverting H and factorising the inverse. Dead inputs (zero energy) need no special case: the
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
