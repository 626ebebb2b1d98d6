"""DSnoT: swaps that bring the mean of each output nearer to that of the dense layer."""

import pytest
import torch

from backend.calibration.second_moments import InputStatistics
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.dsnot import dsnot
from backend.pruning.pruners.wanda import wanda


@pytest.mark.parametrize("text", ["50%", "70%", "2:4"])
def test_the_mean_error_of_no_row_grows_and_most_fall(text: str, make_layer) -> None:
    layer, pattern = make_layer(rows=48, columns=64), Pattern.parse(text)
    layer.X += torch.linspace(-2, 2, 64)[:, None]
    before = wanda(layer.W, layer.inputs, pattern, 0.01)
    after = dsnot(layer.W, layer.inputs, pattern, 0.01)
    kept = after != 0
    assert torch.equal(after[kept], layer.W[kept])  # no weight changes its value
    assert torch.equal((after != 0).sum(1), (before != 0).sum(1))
    if pattern.structured:
        assert ((after.view(-1, pattern.group) != 0).sum(1) <= pattern.keep).all()
    was, now = (((layer.W - W) @ layer.X.mean(1)).abs() for W in (before, after))
    assert (now <= was + 1e-5).all() and (now < 0.5 * was).float().mean() > 0.4


def test_a_swap_is_the_one_of_the_paper() -> None:
    W = torch.tensor([[3.0, 1.0, -0.5, 2.0]])
    mean, energy = torch.tensor([0.1, 1.0, 1.0, 0.2]), torch.tensor([1.0, 1.5, 2.0, 1.0])
    inputs = InputStatistics(10, energy, mean=mean)
    # Wanda keeps 3.0 and 2.0: scores 3, 1.2, 0.7, 2. The lost mean is 1 - 0.5 = 0.5, so 1.0 comes
    # back; e = -0.5. Of those that raise e when they go, 2.0 has the lowest score: e = -0.1.
    assert dsnot(W, inputs, Pattern.parse("50%"), 0.01).tolist() == [[3.0, 1.0, 0.0, 0.0]]
