"""ALPS against exact least squares, and against the pruners it must beat."""

import pytest
import torch

from backend.calibration.linalg import NotPositiveDefiniteError
from backend.calibration.second_moments import InputStatistics
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import alps as room
from backend.pruning.pruners.alps import alps
from backend.pruning.pruners.registry import PRUNERS
from tests.pruning.pruners.test_admm import PATTERNS, exact


@pytest.mark.parametrize("text", PATTERNS)
def test_it_follows_the_pattern_and_beats_the_others(text: str, make_layer) -> None:
    layer, pattern = make_layer(rows=48, columns=64), Pattern.parse(text)
    found = alps(layer.W, layer.inputs, pattern, 0.01)
    assert (found == 0).float().mean().item() == int(64 * pattern.drop + 1e-6) / 64
    if pattern.structured:
        assert ((found.view(-1, pattern.group) != 0).sum(1) <= pattern.keep).all()
    for name in ("magnitude", "wanda", "sparsegpt"):
        other = PRUNERS[name].prune(layer.W, layer.inputs, pattern, 0.01)
        assert layer.error(found) < layer.error(other), name


def test_its_weights_approach_the_optimum_of_its_mask(
    make_layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(rows=12, columns=32)
    found = alps(layer.W, layer.inputs, Pattern.parse("50%"), 1e-6)
    best = layer.error(exact(layer.W, layer.inputs.gram, found != 0))
    assert best <= layer.error(found) < 1.2 * best
    monkeypatch.setattr(room, "GRADIENT_STEPS", 200)
    again = alps(layer.W, layer.inputs, Pattern.parse("50%"), 1e-6)
    assert torch.equal(again != 0, found != 0)
    assert layer.error(again) == pytest.approx(best, rel=1e-2)


def test_a_matrix_that_is_not_positive_definite_asks_for_more_damping() -> None:
    H = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    inputs = InputStatistics(10, H.diagonal().clone(), H)
    with pytest.raises(NotPositiveDefiniteError):
        alps(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 0.01)
    assert alps(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 10.0).isfinite().all()
