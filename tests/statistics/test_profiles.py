"""Maps and regions of a matrix, singular values compared with PyTorch, and power laws with a
known exponent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.errors import ModelError
from backend.models.loading import load
from backend.statistics import profiles as module
from backend.statistics.profiles import (
    LEVELS,
    joint_histogram,
    matrix_maps,
    power_law,
    singular_values,
    spectrum,
)
from backend.statistics.regions import Region, read_region
from backend.statistics.tensors import JOINT_BINS, MAP_CELLS


@pytest.fixture
def dense() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(128, 192)


def test_cells_are_means_and_maxima_of_their_weights(dense: torch.Tensor) -> None:
    weight = torch.where(dense.abs() > 0.7, 1.1 * dense, 0)
    maps = matrix_maps(weight, dense)
    cells = np.abs(weight.numpy()).reshape(64, 2, 64, 3)
    before = np.abs(dense.numpy()).reshape(64, 2, 64, 3)
    expected = {
        "map_mean": cells.mean((1, 3)),
        "map_max": cells.max((1, 3)),
        "map_zeros": (cells == 0).mean((1, 3)),
        "map_change": (cells - before).mean((1, 3)),
    }
    assert set(maps) == set(expected)
    for name, values in expected.items():
        step = np.abs(values).max() / LEVELS
        assert maps[name].dtype == np.float32
        assert np.abs(maps[name] - values).max() <= 0.51 * step
        assert len(np.unique(maps[name])) <= 2 * LEVELS + 1


def test_cells_of_small_and_uneven_matrices() -> None:
    maps = matrix_maps(torch.arange(12.0).view(3, 4))
    assert set(maps) == {"map_mean", "map_max", "map_zeros"}
    assert np.abs(maps["map_max"] - np.arange(12).reshape(3, 4)).max() <= 11 / LEVELS / 2 + 1e-6
    assert matrix_maps(torch.ones(100, 65))["map_mean"].shape == (MAP_CELLS, MAP_CELLS)
    assert not matrix_maps(torch.zeros(8, 8))["map_mean"].any()


def test_the_joint_histogram_counts_every_weight_before_and_after(dense: torch.Tensor) -> None:
    weight = torch.where(dense.abs() > 0.7, dense, 0)
    counts = joint_histogram(weight, dense, 2.0)
    assert counts.sum() == dense.numel()
    edges = np.linspace(-2, 2, JOINT_BINS + 1)[1:-1]
    before, after = (np.digitize(x.flatten().numpy(), edges) for x in (dense, weight))
    expected = np.zeros((JOINT_BINS, JOINT_BINS))
    np.add.at(expected, (before, after), 1)
    assert (counts != expected).sum() <= 2  # a value on an edge
    assert counts[:, JOINT_BINS // 2].sum() >= (weight == 0).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_region_equals_that_of_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(40, 60).to(dtype), "b": torch.randn(30, 50).to(dtype)}
    save_file(
        weights | {"codes": torch.zeros(4, 4, dtype=torch.int32)}, tmp_path / "model.safetensors"
    )
    actual = read_region(tmp_path, "b", Region((3, 9), (40, 50)))
    assert actual is not None and actual.dtype == np.float32
    assert np.array_equal(actual, weights["b"][3:9, 40:50].float().numpy())
    assert read_region(tmp_path, "c", Region((0, 1), (0, 1))) is None
    assert read_region(tmp_path, "codes", Region((0, 1), (0, 1))) is None


def test_a_region_stays_inside_the_matrix() -> None:
    assert Region.around(0, 99, (200, 100), 40) == Region((0, 40), (60, 100))
    assert Region.around(100, 3, (200, 6), 40) == Region((80, 120), (0, 6))


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(40, 60)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be read"):
        read_region(tmp_path, "a", Region((0, 9), (0, 9)))


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (1, 7)])
def test_singular_values_equal_those_of_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    actual = singular_values(weight.to(torch.bfloat16))
    expected = torch.linalg.svdvals(weight.to(torch.bfloat16).double())
    torch.testing.assert_close(actual, expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [2.0, 3.5, 5.0])
def test_the_fit_recovers_the_exponent_of_a_power_law(alpha: float) -> None:
    random = np.random.default_rng(0)
    tail = (1 - random.random(2000)) ** (-1 / (alpha - 1))  # from 1 on
    body = random.random(500)
    fit = power_law(np.concatenate([tail, body]))
    assert fit["alpha"] == pytest.approx(alpha, rel=0.08)
    assert fit["alpha_distance"] < 0.03 and 0.5 < fit["alpha_start"] ** 2 < 3


@pytest.mark.parametrize(
    ("layer", "alpha", "stable_rank", "distance"),
    [
        ("0.self_attn.q_proj", 2.144018, 3.038750, 0.091205),
        ("1.mlp.down_proj", 9.307448, 23.815692, 0.123443),
        ("2.mlp.up_proj", 2.756224, 21.994156, 0.140027),
    ],
)
def test_fits_equal_those_of_weight_watcher(
    layer: str, alpha: float, stable_rank: float, distance: float
) -> None:
    """The expected values are results of WeightWatcher 0.7.7 (`analyze`) for the built-in
    model."""
    weight = load("toy").model.get_submodule(f"model.layers.{layer}").weight
    figures = spectrum(weight)[0]
    assert figures["alpha"] == pytest.approx(alpha, rel=1e-4)
    assert figures["stable_rank"] == pytest.approx(stable_rank, rel=1e-4)
    assert figures["alpha_distance"] == pytest.approx(distance, abs=1e-4)


def test_no_power_law_without_a_tail() -> None:
    assert power_law(np.ones(50)) == {}
    assert power_law(np.arange(1.0, 9.0)) == {}
    for weight in (torch.zeros(16, 16), torch.full((16, 16), torch.inf)):
        assert spectrum(weight) == ({}, {})
    for size in (1e30, 3e38):
        assert spectrum(size * torch.eye(12))[0]["spectral_norm"] == pytest.approx(size)


def test_a_matrix_that_is_too_large_has_no_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIDE", 15)
    assert spectrum(torch.randn(16, 40)) == ({}, {})
    assert spectrum(torch.randn(15, 40))[1]["singular_values"].shape == (15,)
