"""GPTQ against the slow algorithm of the paper, and what its compensated weights promise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backend.quantization.gptq import compensate
from backend.quantization.grid import QuantGrid
from backend.quantization.range_search import search_range

ROWS, COLUMNS = 12, 64


def grid_of(V: Tensor, columns: slice, bits: int = 3) -> QuantGrid:
    return search_range(V, bits, 0, "zero-point", "minmax")


def slowly(W: Tensor, H: Tensor, size: int, bits: int = 3) -> Tensor:
    """Optimal brain quantisation as the paper derives it: after each column the inverse of the
    Hessian of the columns that are left, taken anew."""
    W, rounded = W.double().clone(), torch.zeros_like(W, dtype=torch.float64)
    for j in range(W.shape[1]):
        if j % size == 0:
            grid = grid_of(W[:, j : j + size].float().contiguous(), slice(0), bits)
        rounded[:, j] = grid.nearest(W[:, j : j + 1].float())[:, 0].double()
        inverse = torch.linalg.inv(H[j:, j:].double())
        step = (W[:, j] - rounded[:, j]) / inverse[0, 0]
        W[:, j:] -= torch.outer(step, inverse[0])
    return rounded.float()


@pytest.fixture
def layer(make_layer: Callable) -> object:
    return make_layer(ROWS, COLUMNS, tokens=600)


@pytest.mark.parametrize("size", [64, 16])
def test_it_is_the_papers_algorithm(layer, size: int) -> None:
    inputs, damping = layer.inputs, 0.01
    H = inputs.gram + damping * inputs.energy.mean() * torch.eye(COLUMNS)
    W, grid = compensate(layer.W, inputs.inverse_root(damping), size, grid_of)
    same = (grid.nearest(W) - slowly(layer.W, H, size)).abs() < 1e-4
    assert same.float().mean() > 0.99  # a weight in the middle of two points may go either way


def test_blocks_of_columns_change_nothing(layer, monkeypatch: pytest.MonkeyPatch) -> None:
    U = layer.inputs.inverse_root(0.01)
    whole, _ = compensate(layer.W, U, 64, grid_of)
    monkeypatch.setattr("backend.quantization.gptq.BLOCK", 16)
    parts, _ = compensate(layer.W, U, 64, grid_of)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_inputs_that_do_not_correlate_leave_nothing_to_compensate(layer) -> None:
    W, grid = compensate(layer.W, torch.eye(COLUMNS), 16, grid_of)
    assert torch.equal(W, layer.W)
    assert torch.equal(grid.scale, search_range(layer.W, 3, 16, "zero-point", "minmax").scale)


@pytest.mark.parametrize("size", [64, 16])
def test_zeros_stay_and_what_they_would_have_taken_goes_on(layer, size: int) -> None:
    layer.W[:, ::3] = 0
    U = layer.inputs.inverse_root(0.01)
    W, grid = compensate(layer.W, U, size, grid_of, keep_zeros=True)
    rounded = grid.nearest(W)
    assert (W[:, ::3] == 0).all() and (rounded[:, ::3] == 0).all()
    naive, its = compensate(layer.W, U, size, grid_of)
    masked = its.nearest(naive) * (layer.W != 0)
    assert layer.error(rounded) < layer.error(masked)
