"""Allocations compared with exhaustive search, and their limits."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.errors import ConfigError
from backend.sensitivity.allocation import Choices, best_quality, cheapest, grouped
from backend.sensitivity.profile import Format


def choices(seed: int, items: int = 5, formats: int = 4) -> Choices:
    """Choices whose losses generally, but not always, fall with cost."""
    random = np.random.default_rng(seed)
    cost = np.sort(random.uniform(1, 10, (items, formats)), 1)
    loss = random.uniform(0.5, 2, (items, 1)) / cost**2 * random.uniform(0.6, 1.4, cost.shape)
    names = tuple(f"layer-{n}" for n in range(items))
    return Choices(names, tuple(f"f{n}" for n in range(formats)), cost, loss)


def mixes(known: Choices) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cost and loss of all possible mixes."""
    every = np.array(list(product(range(len(known.formats)), repeat=len(known.items))))
    rows = np.arange(len(known.items))
    return known.cost[rows, every].sum(1), known.loss[rows, every].sum(1)


def sums(known: Choices, formats: dict[str, str]) -> tuple[float, float]:
    """Cost and loss of a mix."""
    at = np.arange(len(known.items)), [known.formats.index(formats[x]) for x in known.items]
    return known.cost[at].sum(), known.loss[at].sum()


@given(st.integers(0, 10_000))
def test_each_mix_of_the_front_is_optimal_for_its_cost(seed: int) -> None:
    known = choices(seed)
    costs, losses = mixes(known)
    for cost, loss in zip(known.front.cost, known.front.loss, strict=True):
        assert loss <= losses[costs <= cost + 1e-9].min() + 1e-9


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_mix_stays_within_its_budget_and_is_almost_optimal(seed: int, share: float) -> None:
    known, front = choices(seed), choices(seed).front
    budget = front.cost[0] + share * (front.cost[-1] - front.cost[0]) + 1e-9
    cost, loss = sums(known, best_quality(known, budget))
    costs, losses = mixes(known)
    best = losses[costs <= budget].min()
    assert cost <= budget + 1e-9
    assert best - 1e-9 <= loss <= best + np.diff(-front.loss).max(initial=0) + 1e-9
    back_cost, back_loss = sums(known, cheapest(known, loss + 1e-12))
    assert back_loss <= loss + 1e-9
    assert back_cost <= cost + np.diff(front.cost).max(initial=0) + 1e-9


def test_pins_groups_and_formats_that_do_not_fit() -> None:
    known = choices(1)
    pinned = known.pinned({"layer-2": "f0"})
    assert best_quality(pinned, 1e9)["layer-2"] == "f0"
    names, cost = grouped(["qkv", "qkv", "qkv", "o", "down"], known.cost)
    assert names == ("qkv", "o", "down")
    np.testing.assert_allclose(cost[0], known.cost[:3].sum(0))
    none = np.ones_like(known.cost, bool)
    none[3] = False
    with pytest.raises(ConfigError, match="No format is available for layer-3"):
        known.restricted(none)
    with pytest.raises(ConfigError, match="'layer-9' is not in the profile"):
        known.pinned({"layer-9": "f0"})


def test_impossible_budgets_are_refused() -> None:
    known = choices(2)
    with pytest.raises(ConfigError, match="The budget is too small"):
        best_quality(known, known.front.cost[0] - 0.01)
    with pytest.raises(ConfigError, match="No mix of formats keeps this quality"):
        cheapest(known, known.front.loss[-1] - 0.01)


@pytest.mark.parametrize(
    ("text", "bits", "words"),
    [
        ("dense", 16, "16 bits"),
        ("int4-g64", 4.25, "4 bits in groups of 64"),
        ("2:4", 9, "2:4"),
        ("50%", 9, "50%"),
        ("2:4+int4-g64", 3.25, "2:4, 4 bits in groups of 64"),
        ("int8", 8 + 16 / 128, "8 bits"),
    ],
)
def test_formats_survive_a_round_trip_and_have_bytes(text: str, bits: float, words: str) -> None:
    form = Format.parse(text)
    assert str(form) == text
    assert form.label == words
    assert form.bits_per_weight(128) == pytest.approx(bits)
    assert form.nbytes(2, 128) == pytest.approx(2 * 128 * bits / 8)


@pytest.mark.parametrize("text", ["", "int9-g64", "+int4", "2:4+", "int4-g64+2:4", "4", "int4-gx"])
def test_invalid_formats_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|offered|width|between|not a format"):
        Format.parse(text)


def test_a_group_must_divide_the_inputs() -> None:
    assert Format.parse("int4-g64").fits(128)
    assert not Format.parse("int4-g64").fits(96)
    assert not Format.parse("4:8").fits(4)
