"""ADMM and ALPS against exact least squares, and against the pruners they must beat."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backend.calibration.linalg import NotPositiveDefiniteError
from backend.calibration.second_moments import InputStatistics
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import admm, alps
from backend.pruning.pruners.registry import PRUNERS

Solver = Callable[[Tensor, InputStatistics, Pattern, float], Tensor]
solvers = pytest.mark.parametrize("solver", [admm.admm, alps.alps], ids=["admm", "alps"])


def exact(W: Tensor, H: Tensor, kept: Tensor) -> Tensor:
    """The least-squares optimum on the weights that are kept, row by row in float64."""
    W, H, best = W.double(), H.double(), torch.zeros_like(W, dtype=torch.float64)
    for row in range(len(W)):
        on = kept[row].nonzero().flatten()
        best[row, on] = torch.linalg.solve(H[on][:, on], (W[row] @ H)[on])
    return best.float()


@solvers
@pytest.mark.parametrize("text", ["50%", "70%", "2:4", "1:4"])
def test_it_follows_the_pattern_and_beats_the_others(solver: Solver, text: str, make_layer) -> None:
    layer, pattern = make_layer(rows=48, columns=64), Pattern.parse(text)
    found = solver(layer.W, layer.inputs, pattern, 0.01)
    assert (found == 0).float().mean().item() == int(64 * pattern.drop + 1e-6) / 64
    if pattern.structured:
        assert ((found.view(-1, pattern.group) != 0).sum(1) <= pattern.keep).all()
    for name in ("magnitude", "wanda", "sparsegpt"):
        other = PRUNERS[name].prune(layer.W, layer.inputs, pattern, 0.01)
        assert layer.error(found) < layer.error(other), name


@pytest.mark.parametrize(
    ("solver", "module", "steps", "many", "usual", "damping"),
    [
        (admm.admm, admm, "STEPS", 3000, 1.25, 0.01),
        (alps.alps, alps, "GRADIENT_STEPS", 200, 1.2, 1e-6),
    ],
    ids=["admm", "alps"],
)
def test_it_comes_close_to_the_optimum_of_its_mask_and_many_steps_reach_it(
    solver: Solver, module: object, steps: str, many: int, usual: float, damping: float,
    make_layer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    layer, half = make_layer(rows=12, columns=32), Pattern.parse("50%")
    found = solver(layer.W, layer.inputs, half, damping)
    best = layer.error(exact(layer.W, layer.inputs.gram, found != 0))
    assert best <= layer.error(found) < usual * best
    monkeypatch.setattr(module, steps, many)
    again = solver(layer.W, layer.inputs, half, 1e-6)
    best = layer.error(exact(layer.W, layer.inputs.gram, again != 0))
    assert layer.error(again) == pytest.approx(best, rel=1e-2)


@solvers
def test_a_matrix_that_is_not_positive_definite_asks_for_more_damping(solver: Solver) -> None:
    H = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    inputs = InputStatistics(10, H.diagonal().clone(), H)
    with pytest.raises(NotPositiveDefiniteError):
        solver(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 0.01)
    assert solver(torch.ones(2, 2), inputs, Pattern.parse("1:2"), 10.0).isfinite().all()
