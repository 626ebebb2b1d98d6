"""Pruners compared with slow reference implementations, and solvers with least squares."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.linalg.gram import NotPositiveDefiniteError
from backend.pruning.config import SDSConfig
from backend.pruning.pattern import Pattern
from backend.pruning.pruners import admm, alps
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.pruners.sparsegpt import BLOCK
from tests.conftest import ALL

PATTERNS = ["2:4", "4:8", "1:4", "3:5", "50%", "70%"]
COLUMNS = 320  # three blocks of 128 and a partial block; divisible by 4, 5 and 8


def prune(
    name: str, W: Tensor, inputs: InputStatistics, pattern: str, damping: float = 0.01
) -> Tensor:
    return PRUNERS[name].prune(W, inputs, Pattern.parse(pattern), damping)


def lowest(scores: Tensor, count: int) -> list[int]:
    return scores.argsort(stable=True)[:count].tolist()


def slow_wanda(W: Tensor, X: Tensor, pattern: Pattern) -> Tensor:
    W = W.clone()
    norms = X.norm(dim=1)
    width = pattern.group or W.shape[1]
    drop = width - pattern.keep if pattern.structured else int(width * pattern.drop + 1e-6)
    for row in W:
        for start in range(0, len(row), width):
            part = row[start : start + width]
            part[lowest(part.abs() * norms[start : start + width], drop)] = 0
    return W


def slow_sparsegpt(W: Tensor, X: Tensor, pattern: Pattern, damping: float, block: int) -> Tensor:
    """Optimal brain surgeon in float64, column by column on the entire matrix.

    After column j is pruned, later columns are updated with the inverse Hessian of the columns
    from j on, which is computed again: no Cholesky factor, no lazy updates of blocks.
    """
    W, H = W.double().clone(), (X.double() @ X.double().T) / X.shape[1]
    H += damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    inverses = [torch.linalg.inv(H[j:, j:]) for j in range(len(H))]
    spread = torch.stack([inverse[0, 0] for inverse in inverses])
    dropped = torch.zeros_like(W, dtype=torch.bool)
    for j in range(W.shape[1]):
        if pattern.structured and j % pattern.group == 0:
            part = slice(j, j + pattern.group)
            for row in range(len(W)):
                scores = W[row, part].square() / spread[part]
                selected = lowest(scores, pattern.group - pattern.keep)
                dropped[row, [j + k for k in selected]] = True
        elif not pattern.structured and j % block == 0:
            part = slice(j, j + block)
            scores = (W[:, part].square() / spread[part]).flatten()
            flags = torch.zeros_like(scores, dtype=torch.bool)
            flags[lowest(scores, int(len(scores) * pattern.drop + 1e-6))] = True
            dropped[:, part] = flags.view(len(W), -1)
        error = torch.where(dropped[:, j], W[:, j], 0) / inverses[j][0, 0]
        W[:, j:] -= torch.outer(error, inverses[j][0])
        W[:, j] = torch.where(dropped[:, j], 0, W[:, j])
    return W.float()


def test_every_pruner_can_be_chosen() -> None:
    assert set(get_args(SDSConfig.model_fields["base"].annotation)) == PRUNERS.keys()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wanda_equals_the_slow_reference(pattern: str, make_layer) -> None:
    layer = make_layer(6, 40)
    actual = prune("wanda", layer.W, layer.inputs, pattern)
    assert torch.equal(actual, slow_wanda(layer.W, layer.X, Pattern.parse(pattern)))


@pytest.mark.parametrize("pattern", PATTERNS if ALL else PATTERNS[::3])
def test_sparsegpt_equals_the_slow_reference(pattern: str, make_layer) -> None:
    layer = make_layer(5, COLUMNS, 2000)
    parsed = Pattern.parse(pattern)
    block = BLOCK - BLOCK % parsed.group if parsed.structured else BLOCK
    actual = prune("sparsegpt", layer.W, layer.inputs, pattern)
    expected = slow_sparsegpt(layer.W, layer.X, parsed, 0.01, block)
    assert torch.equal(actual != 0, expected != 0)
    assert torch.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_are_exact_and_the_input_is_unchanged(name: str, pattern: str, make_layer) -> None:
    layer, parsed = make_layer(8, COLUMNS, 1000), Pattern.parse(pattern)
    before, inputs = layer.W.clone(), layer.inputs
    gram = inputs.gram.clone()
    actual = prune(name, layer.W, inputs, pattern)
    if parsed.structured:
        assert ((actual != 0).view(8, -1, parsed.group).sum(-1) == parsed.keep).all()
    else:
        assert (actual == 0).float().mean().item() == pytest.approx(parsed.drop, abs=0.002)
    assert torch.equal(layer.W, before) and torch.equal(inputs.gram, gram)


def test_a_group_wider_than_a_block_is_one_range(make_layer) -> None:
    layer = make_layer(4, 400, 1000)
    actual = prune("sparsegpt", layer.W, layer.inputs, "100:200")
    assert ((actual != 0).view(4, 2, 200).sum(-1) == 100).all()


def test_unstructured_magnitude_compares_the_whole_layer() -> None:
    W = torch.tensor([[1.0, -2, 3, -4], [5, -6, 7, -8]])
    assert prune("magnitude", W, InputStatistics(), "50%").tolist() == [
        [0, 0, 0, 0],
        [5, -6, 7, -8],
    ]


@pytest.mark.parametrize("pattern", ["2:4", "50%", "70%"])
def test_errors_are_ordered_on_correlated_inputs(pattern: str, make_layer) -> None:
    layer = make_layer(32, 128, 2000)
    by = {name: layer.error(prune(name, layer.W, layer.inputs, pattern)) for name in PRUNERS}
    assert max(by["admm"], by["alps"]) < by["sparsegpt"] < min(by["wanda"], by["magnitude"])


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "admm", "alps", "dsnot"])
@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_dead_inputs_are_dropped_and_the_scale_of_the_others_does_not_matter(
    name: str, pattern: str, make_layer
) -> None:
    """Dead inputs, as after a ReLU, must not affect the mask or the damping of other inputs."""
    layer, quiet = make_layer(8, 64, 1000), make_layer(8, 64, 1000)
    layer.X[::3] = 0
    quiet.X = layer.X * 2.0**-12
    actual, expected = (prune(name, x.W, x.inputs, pattern) for x in (quiet, layer))
    assert expected.isfinite().all() and (expected[:, ::3] == 0).all()
    assert torch.equal(actual != 0, expected != 0)
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sparsegpt", "admm", "alps"])
def test_a_matrix_that_is_not_positive_definite_asks_for_more_damping(name: str) -> None:
    H = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    inputs = InputStatistics(10, H.diagonal().clone(), H)
    with pytest.raises(NotPositiveDefiniteError):
        prune(name, torch.ones(2, 2), inputs, "1:2")
    assert prune(name, torch.ones(2, 2), inputs, "1:2", 10.0).isfinite().all()


@pytest.mark.parametrize("text", ["50%", "70%", "2:4"])
def test_dsnot_increases_the_mean_error_of_no_row_and_lowers_most(text: str, make_layer) -> None:
    layer = make_layer(rows=48, columns=64)
    layer.X += torch.linspace(-2, 2, 64)[:, None]
    before, after = (prune(name, layer.W, layer.inputs, text) for name in ("wanda", "dsnot"))
    mask = after != 0
    assert torch.equal(after[mask], layer.W[mask])  # no weight changes its value
    assert torch.equal(mask.sum(1), (before != 0).sum(1))
    was, now = (((layer.W - W) @ layer.X.mean(1)).abs() for W in (before, after))
    assert (now <= was + 1e-5).all() and (now < 0.5 * was).float().mean() > 0.4


def test_a_swap_of_dsnot_is_that_of_the_paper() -> None:
    W = torch.tensor([[3.0, 1.0, -0.5, 2.0]])
    mean, energy = torch.tensor([0.1, 1.0, 1.0, 0.2]), torch.tensor([1.0, 1.5, 2.0, 1.0])
    inputs = InputStatistics(10, energy, mean=mean)
    # Wanda keeps 3.0 and 2.0: scores 3, 1.2, 0.7, 2. The error is e = 1 - 0.5 = 0.5, so 1.0 is
    # restored: e = -0.5. Among weights that raise e if dropped, 2.0 has the lowest score: e = -0.1.
    assert prune("dsnot", W, inputs, "50%").tolist() == [[3.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "module", "steps", "many", "usual", "damping"),
    [
        ("admm", admm, "STEPS", 3000, 1.25, 0.01),
        ("alps", alps, "GRADIENT_STEPS", 200, 1.2, 1e-6),
    ],
)
def test_a_solver_approaches_the_optimum_of_its_mask(
    name: str,
    module: object,
    steps: str,
    many: int,
    usual: float,
    damping: float,
    layer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actual = prune(name, layer.W, layer.inputs, "50%", damping)
    best = layer.error(layer.best_on(actual != 0))
    assert best <= layer.error(actual) < usual * best
    monkeypatch.setattr(module, steps, many)
    again = prune(name, layer.W, layer.inputs, "50%", 1e-6)
    assert layer.error(again) == pytest.approx(layer.error(layer.best_on(again != 0)), rel=1e-2)
