"""Weight adjustment never increases errors or density, and approaches the optimum of a mask."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.weight_adjustment import adjust

PATTERNS = ["2:4", "4:8", "50%", "70%"]


def pruned(layer, pattern: str, name: str = "wanda") -> Tensor:
    return PRUNERS[name].prune(layer.W, layer.inputs, Pattern.parse(pattern), 0.01)


def adjusted(layer, start: Tensor, pattern: str, steps: int, soft: bool) -> Tensor:
    return adjust(start, layer.W, layer.inputs, Pattern.parse(pattern), steps, soft)


def row_errors(layer, W: Tensor) -> Tensor:
    return (((W - layer.W) @ layer.X) ** 2).sum(1)


def best_on(layer, mask: Tensor) -> Tensor:
    """Least-squares solution of each row on its mask, in float64."""
    H = layer.inputs.gram.double()
    best = torch.zeros_like(layer.W, dtype=torch.float64)
    for row, keep in enumerate(mask):
        kept = keep.nonzero().flatten()
        best[row, kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ layer.W[row].double())
    return best.float()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_fixed_mask_leads_to_its_least_squares_optimum(pattern: str, make_layer) -> None:
    layer = make_layer(12, 32, 1000)
    start = pruned(layer, pattern)
    actual = adjusted(layer, start, pattern, 3000, soft=False)
    assert torch.allclose(actual, best_on(layer, start != 0), atol=1e-3)
    assert torch.equal(actual != 0, start != 0)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", PRUNERS)
def test_no_row_gets_worse_or_denser(soft: bool, pattern: str, name: str, make_layer) -> None:
    layer = make_layer(24, 64, 500)
    start = pruned(layer, pattern, name)
    for steps in (1, 2, 30):
        actual = adjusted(layer, start, pattern, steps, soft)
        assert (row_errors(layer, actual) <= row_errors(layer, start) * (1 + 1e-4)).all()
        assert ((actual != 0).sum(1) <= (start != 0).sum(1)).all()
        if Pattern.parse(pattern).structured:
            groups = (actual != 0).view(24, -1, Pattern.parse(pattern).group).sum(-1)
            assert (groups <= Pattern.parse(pattern).keep).all()


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
    actual = adjusted(layer, start, "50%", 30, soft=True)
    assert ((actual != 0) & (start == 0)).any()
