"""Singular values against torch's, and power laws whose exponent is known."""

import numpy as np
import pytest
import torch

from backend.models.loading import load
from backend.statistics import profiles as module
from backend.statistics.profiles import power_law, singular_values, spectrum


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (1, 7)])
def test_singular_values_are_torchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    found = singular_values(weight.to(torch.bfloat16))
    expected = torch.linalg.svdvals(weight.to(torch.bfloat16).double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [2.0, 3.5, 5.0])
def test_the_exponent_of_a_power_law_is_found(alpha: float) -> None:
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
def test_as_weight_watchers(layer: str, alpha: float, stable_rank: float, distance: float) -> None:
    """Of layers of the built-in model, as WeightWatcher 0.7.7 has them (`analyze`)."""
    weight = load("toy").model.get_submodule(f"model.layers.{layer}").weight
    figures = spectrum(weight)[0]
    assert figures["alpha"] == pytest.approx(alpha, rel=1e-4)
    assert figures["stable_rank"] == pytest.approx(stable_rank, rel=1e-4)
    assert figures["alpha_distance"] == pytest.approx(distance, abs=1e-4)


def test_no_power_law_where_there_is_nothing_to_fit() -> None:
    assert power_law(np.ones(50)) == {}
    assert power_law(np.arange(1.0, 9.0)) == {}
    for weight in (torch.zeros(16, 16), torch.full((16, 16), torch.inf)):
        assert spectrum(weight) == ({}, {})
    for size in (1e30, 3e38):
        large = spectrum(size * torch.eye(12))[0]
        assert large["spectral_norm"] == pytest.approx(size)


def test_a_matrix_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SIDE", 15)
    assert spectrum(torch.randn(16, 40)) == ({}, {})
    assert spectrum(torch.randn(15, 40))[1]["singular_values"].shape == (15,)
