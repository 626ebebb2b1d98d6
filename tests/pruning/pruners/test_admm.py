"""ADMM against exact least squares, and against the pruners it must beat."""

import pytest
import torch
from torch import Tensor

from backend.calibration.linalg import NotPositiveDefiniteError
from backend.calibration.second_moments import InputStatistics
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import admm as room
from backend.pruning.pruners.admm import admm
from backend.pruning.pruners.registry import PRUNERS

PATTERNS = ["50%", "70%", "2:4", "1:4"]


def exact(W: Tensor, H: Tensor, kept: Tensor) -> Tensor:
    """The least-squares optimum on the weights that are kept, row by row in float64."""
    W, H, best = W.double(), H.double(), torch.zeros_like(W, dtype=torch.float64)
    for row in range(len(W)):
        on = kept[row].nonzero().flatten()
        best[row, on] = torch.linalg.solve(H[on][:, on], (W[row] @ H)[on])
    return best.float()


@pytest.mark.parametrize("text", PATTERNS)
def test_it_follows_the_pattern_and_beats_the_others(text: str, make_layer) -> None:
    layer, pattern = make_layer(rows=48, columns=64), Pattern.parse(text)
    found = admm(layer.W, layer.inputs, pattern, 0.01)
    zeros = (found == 0).float().mean().item()
    assert zeros == int(64 * pattern.drop + 1e-6) / 64
    if pattern.structured:
        groups = (found.view(-1, pattern.group) != 0).sum(1)
        assert (groups <= pattern.keep).all()
    for name in ("magnitude", "wanda", "sparsegpt"):
        other = PRUNERS[name].prune(layer.W, layer.inputs, pattern, 0.01)
        assert layer.error(found) < layer.error(other), name


def test_many_steps_reach_the_optimum_of_the_mask(
    make_layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(rows=12, columns=32)
    monkeypatch.setattr(room, "STEPS", 3000)
    found = admm(layer.W, layer.inputs, Pattern.parse("50%"), 1e-6)
    best = exact(layer.W, layer.inputs.gram, found != 0)
    assert layer.error(found) == pytest.approx(layer.error(best), rel=1e-2)


def test_a_matrix_that_is_not_positive_definite_asks_for_more_damping() -> None:
    H = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    inputs = InputStatistics(10, H.diagonal().clone(), H)
    with pytest.raises(NotPositiveDefiniteError):
        admm(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 0.01)
    assert admm(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 10.0).isfinite().all()
