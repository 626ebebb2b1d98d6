"""Statistics and histograms of tensors, relative to the dense tensor and over channels, compared
with NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

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
from backend.statistics.paired import paired_ratio, t_quantile
from backend.statistics.profiles import channel_figures
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.statistics.tensors import (
    BINS,
    JOINT,
    MAGNITUDES,
    MAPS,
    MEASURES,
    QUANTILES,
    SIDES,
    SINGULAR_VALUES,
    TensorSnapshot,
    channel_profile,
    magnitude_edges,
    map_profile,
)

PLACE: dict[str, Any] = {"tensor": "a.weight", "block": 3, "module": "a", "stage": "first"}
FLOATS = st.floats(-4, 4, width=32).map(lambda x: np.float32(round(x, 2)))
MATRICES = st.tuples(st.integers(1, 7), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=FLOATS)
)


@pytest.fixture
def dense() -> Tensor:
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(1)) * 0.02


def prune_by_size(dense: Tensor, share: float) -> Tensor:
    ranks = dense.abs().flatten().argsort().argsort().view_as(dense)
    return dense.masked_fill(ranks < round(share * dense.numel()), 0.0)


def measured(dense: Tensor, weight: Tensor, **more: float) -> TensorMeasurement:
    return ReferenceTensor(dense).measure(weight, **PLACE, more=more)


@given(MATRICES, st.randoms(use_true_random=False))
def test_changes_equal_those_of_numpy(values: np.ndarray, random: object) -> None:
    W = values * np.float32(0.5)
    W[0] = 0
    stats = measured(torch.from_numpy(values), torch.from_numpy(W)).snapshot.stats
    d, w = values.astype(np.float64).ravel(), W.astype(np.float64).ravel()
    norms = np.linalg.norm(d) * np.linalg.norm(w)
    assert stats["cosine"] == pytest.approx(d @ w / norms if norms else 0, abs=1e-4)
    if np.linalg.norm(d):
        moved = np.linalg.norm(w - d) / np.linalg.norm(d)
        assert stats["moved"] == pytest.approx(moved, rel=1e-3, abs=1e-6)
    between = np.abs(np.sort(w) - np.sort(d)).mean() / (d.std() or 1.0)
    assert stats["distance"] == pytest.approx(between, rel=1e-3, abs=1e-6)


def test_shuffling_moves_weights_but_not_their_distribution(dense: Tensor) -> None:
    shuffled = dense.flatten()[torch.randperm(dense.numel())].view_as(dense)
    stats = measured(dense, shuffled).snapshot.stats
    assert stats["distance"] == 0 and stats["moved"] > 1 and abs(stats["cosine"]) < 0.1


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("copies", [1, 50])
def test_pruning_by_size_is_recognized(dense: Tensor, share: float, copies: int) -> None:
    """This includes a tensor so large that its values are counted instead of sorted."""
    dense = torch.cat([dense * (1 + n / 64) for n in range(copies)])
    pruned = prune_by_size(dense, share)
    stats = measured(dense, pruned).snapshot.stats
    assert stats["by_size"] == 1.0
    largest = dense[pruned == 0].abs().max().item()
    assert stats["cutoff"] == pytest.approx(largest, rel=0 if copies == 1 else 2**-12)
    assert stats["cutoff"] <= stats["smallest"]


def test_pruning_by_other_scores_is_recognized(dense: Tensor) -> None:
    half = dense.clone()
    half[::2] = 0.0  # every other row, regardless of its weights
    stats = measured(dense, half).snapshot.stats
    below = (dense[::2].abs() <= stats["cutoff"]).float().mean().item()
    assert stats["by_size"] == pytest.approx(below) and below == pytest.approx(0.5, abs=0.05)


def test_channel_profiles_equal_those_of_numpy(dense: Tensor) -> None:
    pruned = prune_by_size(dense, 0.4)
    w, actual = pruned.numpy(), channel_figures(pruned)
    assert {*actual} == {channel_profile(side, of) for side in SIDES for of in MEASURES}
    for side, axis in (("row", 1), ("column", 0)):
        expected = {
            "norm": np.linalg.norm(w, axis=axis),
            "max": np.abs(w).max(axis),
            "zeros": (w == 0).mean(axis),
        }
        for of, values in expected.items():
            stored = actual[channel_profile(side, of)]
            assert stored.dtype == np.float32 and stored == pytest.approx(values, rel=3e-4)


def test_profiles_name_their_tensor_and_hold_all_weights(dense: Tensor) -> None:
    actual = measured(dense, prune_by_size(dense, 0.5))
    by_name = {p.name: p for p in actual.profiles}
    channels = {channel_profile(side, measure) for side in SIDES for measure in MEASURES}
    maps = {map_profile(figure) for figure in MAPS}
    assert set(by_name) == {MAGNITUDES, JOINT, SINGULAR_VALUES} | channels | maps
    assert by_name[JOINT].values.sum() == dense.numel()
    assert all((p.tensor, p.block, p.stage) == ("a.weight", 3, "first") for p in actual.profiles)
    assert by_name[MAGNITUDES].values.sum() == dense.numel() / 2
    assert by_name["row_norm"].values.shape == (64,)
    assert by_name["column_norm"].values.shape == (48,)


def test_half_precision_is_measured_as_float32(dense: Tensor) -> None:
    half = dense.bfloat16()
    a, b = measured(half, half / 2), measured(half.float(), half.float() / 2)
    assert a.snapshot.stats == b.snapshot.stats


def test_a_difference_on_every_window_is_significant_although_windows_differ() -> None:
    random = np.random.default_rng(0)
    dense = random.normal(3.0, 0.5, 16)
    worse = dense + random.normal(0.02, 0.005, 16)
    actual = paired_ratio(worse, dense)
    assert actual is not None and actual.is_significant and actual.windows == 16
    assert actual.value == pytest.approx(np.exp((worse - dense).mean()))
    assert 1 < actual.low < actual.value < actual.high < 1.04


@pytest.mark.parametrize("windows", [5, 32])
@pytest.mark.parametrize("skew", ["none", "right", "left"])
def test_the_interval_covers_the_true_ratio_of_skewed_window_losses(
    windows: int, skew: str
) -> None:
    """The skewness of the differences is 0 or 0.8, twice the median of compared stages."""
    random, sigma = np.random.default_rng(windows), 0.25
    losses = random.normal(3.0, 0.5, (10_000, windows))
    noise = random.standard_normal(losses.shape)
    if skew != "none":
        lognormal = np.exp(sigma * noise) - np.exp(sigma**2 / 2)
        noise = lognormal / sigma * (1 if skew == "right" else -1)
    ratios = [paired_ratio(a + b, a) for a, b in zip(losses, 0.02 * noise + 0.05, strict=True)]
    assert 0.94 <= np.mean([x.low <= np.exp(0.05) <= x.high for x in ratios if x]) <= 0.97
    assert all(x.is_significant == (not x.low <= 1 <= x.high) for x in ratios if x)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(4, 2.7764), (7, 2.3646), (15, 2.1314), (100, 1.9840), (1, 12.7062), (3, 3.1824)],
)
def test_quantiles_are_those_of_tables_of_t(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=1e-3)


def test_an_infinite_loss_is_significantly_worse() -> None:
    broken = paired_ratio([np.inf] + [3.0] * 7, np.linspace(2.9, 3.1, 8))
    assert broken is not None and broken.is_significant and broken.low > 1


def test_unequal_or_few_windows_have_no_ratio() -> None:
    assert paired_ratio([1.0] * 6, [1.0] * 7) is None
    assert paired_ratio([1.0] * 4, [1.0] * 4) is None
    same = paired_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert same is not None and (same.low, same.value, same.high) == (1, 1, 1)
    assert not same.is_significant


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
