"""Weight adjustment never increases errors or density, and approaches the optimum of a mask."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.weight_adjustment import adjust

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
    actual = adjusted(layer, start, "50%", 30, soft=True)
    assert ((actual != 0) & (start == 0)).any()
