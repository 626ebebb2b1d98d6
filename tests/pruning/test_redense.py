"""Re-dense step compared with closed forms and with a long plain descent; weight adjustment never
increases errors or density, and approaches the optimum of a mask."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from backend.linalg.gram import largest_eigenvalue
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.redense import redense
from backend.pruning.weight_adjustment import adjust


def first(layer, pattern: str = "2:4") -> Tensor:
    return PRUNERS["wanda"].prune(layer.W, layer.inputs, Pattern.parse(pattern), 0.01)


def penalized(W: Tensor, layer, l1: float) -> float:
    a1 = l1 * layer.inputs.energy.mean().item() * layer.W.abs().mean().item()
    return 0.5 * layer.error(W) + a1 * W.abs().sum().item()


def test_few_steps_restore_strong_directions_and_leave_weak_ones(make_layer) -> None:
    layer = make_layer(16, 32, 1000)
    start = first(layer)
    W = redense(start, layer.W, layer.inputs, 5, l1=0)
    _, directions = torch.linalg.eigh(layer.inputs.gram)  # weakest first
    remainder = ((W - layer.W) @ directions).norm(dim=0) / ((start - layer.W) @ directions).norm(
        dim=0
    )
    assert remainder[-1] < 0.1
    assert remainder[0] > 0.5


@pytest.mark.parametrize("l1", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_penalized_objective_falls(l1: float, steps: int, layer) -> None:
    start = first(layer)
    W = redense(start, layer.W, layer.inputs, steps, l1)
    assert penalized(W, layer, l1) < penalized(start, layer, l1)


def test_long_runs_reach_the_penalized_optimum(layer) -> None:
    """The reference takes thousands of proximal steps in float64 without momentum. The weakest
    inputs are amplified, because they would need ten times as many steps."""
    layer.X = layer.X + 0.3 * torch.randn(layer.X.shape, generator=torch.Generator().manual_seed(5))
    H, dense = layer.inputs.gram.double(), layer.W.double()
    a1 = 0.1 * H.diagonal().mean() * dense.abs().mean()
    step = 1 / torch.linalg.eigvalsh(H)[-1]
    W = first(layer).double()
    for _ in range(8000):
        W = W - step * ((W - dense) @ H)
        W = W.sign() * (W.abs() - a1 * step).clamp_min(0)
    actual = redense(first(layer), layer.W, layer.inputs, 1500, l1=0.1)
    assert torch.allclose(actual.double(), W, atol=1e-4)


@example(29, 15, 769, 0.125)  # two eigenvalues so close that a single vector underestimates by 5 %
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000), st.floats(0.0, 3.0))
@settings(max_examples=100, deadline=None)
def test_the_eigenvalue_is_bounded_from_above(n: int, tokens: int, seed: int, decay: float) -> None:
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(n, tokens, generator=random) * torch.arange(1, n + 1).unsqueeze(1) ** -decay
    H = X @ X.T / tokens
    exact = torch.linalg.eigvalsh(H.double())[-1].item()
    assert exact <= largest_eigenvalue(H) * (1 + 1e-5) <= 1.051 * exact


@pytest.mark.parametrize("largest", [(), (1.3, 1.29), (1e6,)])
def test_the_eigenvalue_of_a_flat_spectrum_is_bounded_from_above(largest: tuple) -> None:
    """Iterations converge slowest for eigenvalues that are close to each other."""
    n, random = 1536, torch.Generator().manual_seed(3)
    values = torch.ones(n)
    values[: len(largest)] = torch.tensor(largest)
    Q = torch.linalg.qr(torch.randn(n, n, generator=random)).Q
    exact = values.max().item()
    assert exact <= largest_eigenvalue(Q * values @ Q.T) * (1 + 1e-5) <= 1.051 * exact


def test_the_eigenvalue_of_a_low_rank_matrix_is_accurate() -> None:
    """The iteration ends early when the subspace is exhausted."""
    for H, exact in ((torch.eye(300), 1.0), (torch.ones(50, 50), 50.0), (torch.zeros(9, 9), 0.0)):
        assert largest_eigenvalue(H) == pytest.approx(1.05 * exact, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-26, 1e24])
def test_the_eigenvalue_of_tiny_and_huge_inputs_is_accurate(scale: float) -> None:
    H = torch.diag(torch.linspace(0.01, 1, 64)) * scale
    assert largest_eigenvalue(H) == pytest.approx(1.05 * scale, rel=1e-2)


PATTERNS = ["2:4", "4:8", "50%", "70%"]
IN_FLOAT32 = [(name, pattern, torch.float32) for name in PRUNERS for pattern in PATTERNS]
IN_BFLOAT16 = [  # in C++, where the processor has the instructions
    ("magnitude", pattern, torch.bfloat16)
    for pattern in ("1:2", "2:4", "3:4", "4:8", "8:16", "15:16", "50%", "97%")
]


def pruned(layer, pattern: str, name: str = "wanda") -> Tensor:
    return PRUNERS[name].prune(layer.W, layer.inputs, Pattern.parse(pattern), 0.01)


def adjusted(
    layer, start: Tensor, pattern: str, steps: int, soft: bool, dtype: torch.dtype = torch.float32
) -> Tensor:
    inputs = replace(layer.inputs, dtype=dtype)
    return adjust(start, layer.W, inputs, Pattern.parse(pattern), steps, soft)


def row_errors(layer, W: Tensor) -> Tensor:
    return (((W - layer.W) @ layer.X) ** 2).sum(1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_fixed_mask_leads_to_its_least_squares_optimum(pattern: str, make_layer) -> None:
    layer = make_layer(12, 32, 1000)
    start = pruned(layer, pattern)
    actual = adjusted(layer, start, pattern, 3000, soft=False)
    assert torch.allclose(actual, layer.best_on(start != 0), atol=1e-3)
    assert torch.equal(actual != 0, start != 0)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(("name", "pattern", "dtype"), IN_FLOAT32 + IN_BFLOAT16)
def test_no_row_gets_worse_or_denser(
    soft: bool, name: str, pattern: str, dtype: torch.dtype, make_layer
) -> None:
    layer, rule = make_layer(24, 64, 500), Pattern.parse(pattern)
    start = pruned(layer, pattern, name)
    for steps in (0, 1, 2, 30):
        actual = adjusted(layer, start, pattern, steps, soft, dtype)
        assert (row_errors(layer, actual) <= row_errors(layer, start) * (1 + 1e-4)).all()
        assert ((actual != 0).sum(1) <= (start != 0).sum(1)).all()
        if rule.structured:
            assert ((actual != 0).view(24, -1, rule.group).sum(-1) <= rule.keep).all()


@pytest.mark.parametrize("soft", [True, False])
def test_more_steps_never_increase_the_error(soft: bool, make_layer) -> None:
    """The descent may overshoot, so each row must end at its best iterate."""
    layer = make_layer(24, 64, 500)
    start = pruned(layer, "2:4")
    errors = [row_errors(layer, adjusted(layer, start, "2:4", t, soft)) for t in range(1, 60)]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-4)).all()


def test_a_soft_mask_lets_a_pruned_weight_return(make_layer) -> None:
    layer = make_layer(16, 64, 1000)
    start = pruned(layer, "50%", "magnitude")
    assert ((adjusted(layer, start, "50%", 30, soft=True) != 0) & (start == 0)).any()
