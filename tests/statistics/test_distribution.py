"""Statistics and histograms of tensors compared with NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.statistics.distribution import (
    MAX_SORTED,
    NEAR_ZERO,
    ascending,
    comparable,
    cutoff,
    histogram,
    magnitude_counts,
    ordered_values,
    tensor_statistics,
)
from backend.statistics.reference import ReferenceTensor
from backend.statistics.tensors import BINS, QUANTILES, TensorSnapshot, magnitude_edges

FLOATS = st.floats(-4, 4, width=32).map(lambda x: np.float32(round(x, 2)))
MATRICES = st.tuples(st.integers(1, 7), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=FLOATS)
)


def snapshot_of(weight: torch.Tensor, dense: torch.Tensor, **more: float) -> TensorSnapshot:
    reference, location = ReferenceTensor(dense), {"tensor": "a.weight", "block": 3, "module": "a"}
    return reference.measure(weight, **location, stage="first", more=more, spectral=False).snapshot


@pytest.fixture
def weight() -> torch.Tensor:
    W = torch.randn(64, 48, generator=torch.Generator().manual_seed(1)) * 0.02 + 0.001
    return W * (torch.rand(64, 48, generator=torch.Generator().manual_seed(2)) > 0.3)


def test_statistics_equal_those_of_numpy(weight: torch.Tensor) -> None:
    w = weight.double().numpy().ravel()
    z = (w - w.mean()) / w.std()
    expected = {
        "zero_share": (w == 0).mean(),
        "near_zero": (np.abs(w) < 0.05 * 0.03).mean(),
        "mean": w.mean(),
        "std": w.std(),
        "skewness": (z**3).mean(),
        "kurtosis": (z**4).mean(),
        "min": w.min(),
        "max": w.max(),
        "smallest": np.abs(w[w != 0]).min(),
        "l1": np.abs(w).sum(),
        "l2": np.sqrt((w**2).sum()),
        "dense_std": 0.03,
    }
    figures = tensor_statistics(ascending(weight.flatten()), dense_std=0.03)
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("unit", [1e-15, 1e-12, 1e12])
def test_skewness_and_kurtosis_do_not_depend_on_the_scale(
    unit: float, weight: torch.Tensor
) -> None:
    """Fourth powers of these weights are outside the range of float32."""
    actual, usual = (
        tensor_statistics(ascending(w.flatten()), 1.0) for w in (weight * unit, weight)
    )
    assert actual["std"] == pytest.approx(usual["std"] * unit, rel=1e-4)
    for name in ("kurtosis", "skewness"):
        assert actual[name] == pytest.approx(usual[name], rel=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_a_constant_tensor_has_finite_statistics(value: float) -> None:
    W = torch.full((4, 4), value)
    actual = snapshot_of(W, W)
    assert all(np.isfinite(x) for x in (*actual.stats.values(), *actual.quantiles, actual.hi))
    assert actual.hi > 0
    assert actual.stats["kurtosis"] == 0


def test_quantiles_equal_those_of_numpy(weight: torch.Tensor) -> None:
    expected = np.quantile(weight.numpy().astype(np.float64), QUANTILES)
    assert snapshot_of(weight, weight).quantiles == pytest.approx(expected.tolist(), rel=1e-6)


@given(MATRICES, st.floats(0, 5))
def test_zeros_and_near_zeros_are_counted_exactly(values: np.ndarray, std: float) -> None:
    figures = tensor_statistics(ascending(torch.from_numpy(values).flatten()), std)
    threshold = np.float32(NEAR_ZERO * std)
    assert figures["zero_share"] == (values == 0).mean()
    assert figures["near_zero"] == (np.abs(values) < threshold).mean()
    assert figures["smallest"] == np.abs(values[values != 0]).min(initial=9, where=True) % 9
    assert figures["std"] == pytest.approx(values.std(dtype=np.float64), rel=1e-4, abs=1e-6)


@given(MATRICES, st.floats(0.01, 5))
def test_bins_equal_those_of_numpy_and_counts_add_up(values: np.ndarray, edge: float) -> None:
    ordered = ascending(torch.from_numpy(values).flatten())
    counts, zeros, below, above = histogram(ordered, edge)
    assert zeros == (values == 0).sum()
    assert counts.shape == (BINS,) and counts.min() >= 0
    assert below == (values < np.float32(-edge)).sum()
    assert above == (values > np.float32(edge)).sum()
    assert counts.sum() + zeros + below + above == values.size
    counts, *_ = histogram(ordered, 2.0)
    edges = np.linspace(-2, 2, BINS + 1)  # exact in binary, for NumPy's arithmetic
    assert counts.tolist() == np.histogram(values[values != 0], edges)[0].tolist()


@given(MATRICES)
def test_ascending_sorts_the_last_dimension(values: np.ndarray) -> None:
    actual = ascending(torch.from_numpy(values))
    assert torch.equal(actual, torch.from_numpy(values).sort(dim=-1).values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_counting_sort_is_exact_for_16_bit_values(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(MAX_SORTED + 1, generator=random).to(dtype).float()
    values[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, -1e-7]).to(dtype).float()
    assert torch.equal(ordered_values(values[:-1]), values[:-1].sort().values)
    actual, expected = ordered_values(values), values.sort().values
    assert torch.equal(actual, comparable(values).sort().values)
    within = 2.0**-12 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(actual, expected, rtol=within, atol=0.0)
    assert (actual == 0).sum() == (values == 0).sum()
    values[0] = torch.nan
    assert ordered_values(values)[-1].isnan() and not ordered_values(values)[:-1].isnan().any()


VALUES = arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-3, 3, width=32).map(lambda x: round(x, 2))
)


@given(VALUES, st.floats(0.01, 3))
def test_magnitude_bins_equal_those_of_numpy_and_the_ends_are_open(
    values: np.ndarray, std: float
) -> None:
    counts = magnitude_counts(ascending(torch.from_numpy(values)), std)
    edges = magnitude_edges(std).astype(np.float32)
    edges[0], edges[-1] = 0, np.inf
    expected, _ = np.histogram(np.abs(values[values != 0]), edges)
    assert counts.tolist() == expected.tolist()
    assert counts.sum() + (values == 0).sum() == len(values)


@given(VALUES, st.floats(0, 1))
def test_the_cutoff_is_the_largest_of_the_smallest_magnitudes(
    values: np.ndarray, share: float
) -> None:
    actual = cutoff(ascending(torch.from_numpy(values)), share)
    rank = round(share * len(values))
    assert actual == (np.sort(np.abs(values))[rank - 1] if rank else 0.0)
