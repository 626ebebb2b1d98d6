"""Budgets: their syntax, the resulting mixes, and impossible budgets."""

from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, strategies

from backend.budget import Budget
from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.sensitivity.budget import BudgetSolver
from backend.sensitivity.profile import (
    FIGURES,
    DecodingTimes,
    Format,
    SensitivityProfile,
    profile_of,
)

FORMATS = tuple(map(Format.parse, ("int2-g64", "int3-g64", "int4-g64", "50%", "70%")))
MODULES = ("self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj")


@pytest.fixture
def profile() -> SensitivityProfile:
    """Profile of eight blocks; the middle blocks lose least. KL is measured at 3 bits and 50 %."""
    layers = [
        LinearShape(f"model.layers.{b}.{m}", b, m, 64, 128) for b in range(8) for m in MODULES
    ]
    base = np.array([0.1, 0.03, 0.005, 0.02, 0.09])
    stored = {}
    for layer in layers:
        weight = 1 + (layer.block - 4) ** 2
        kl = np.where(np.isin(np.arange(5), (1, 3)), 2 * base * weight, np.nan)
        stored[layer.name] = np.array([base, base * weight, kl, kl], np.float32)
    return profile_of("profile-0001", "toy", layers, FORMATS, stored)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("80MB", "size", 80e6),
        ("80 mb", "size", 80e6),
        ("1.5GiB", "size", 1.5 * 2**30),
        ("3.25bits", "bits", 3.25),
        ("50%", "sparsity", 0.5),
        ("loss 2%", "loss", 0.02),
        ("loss 1.1 ×", "loss", 0.1),
        ("1.02x", "loss", 0.02),
        ("6.5ms", "ms", 6.5),
    ],
)
def test_budgets_are_parsed(text: str, kind: str, value: float) -> None:
    budget = Budget.parse(text)
    assert budget.kind == kind
    assert budget.value == pytest.approx(value)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    [
        *("", "80", "80TB", "-1MB", "0%", "100%", "loss 3bits", "loss 3ms", "1e9MB", "x" * 99),
        *("999999999999999gib", "1b", "0.00001bits", "33bits", "0ms", "loss 9999%"),
        *("1x", "0.9x", "loss x", "12x", "loss 2%x"),
    ],
)
def test_invalid_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget|out of range"):
        Budget.parse(text)


@given(
    strategies.sampled_from(["b", "MB", "kib", "GiB", "bits", "%", "ms", "loss"]),
    strategies.decimals(0, 10**6, places=9),
)
def test_a_budget_survives_a_round_trip(unit: str, number: Decimal) -> None:
    text = f"loss {number}%" if unit == "loss" else f"{number}{unit}"
    with suppress(ValueError):
        budget = Budget.parse(text)
        assert Budget.parse(str(budget)) == budget


def test_missing_losses_are_scaled_by_measured_losses(profile: SensitivityProfile) -> None:
    fisher = profile.figure("fisher")
    np.testing.assert_allclose(profile.ratio, 2, rtol=1e-5)
    np.testing.assert_allclose(profile.predicted, 2 * fisher, rtol=1e-5)
    assert profile.agreement("fisher") == pytest.approx(1)
    assert profile.agreement("error") is not None


def test_sensitive_layers_get_more_bits_and_experts_share_a_format(
    profile: SensitivityProfile,
) -> None:
    solver = BudgetSolver(profile, 1000, frozenset(FORMATS[:3]))
    mix = solver.solve(Budget("bits", 3.25))
    assert mix.bits <= 3.25 + 1e-9
    assert (
        mix.loss
        < BudgetSolver(profile, 1000, frozenset(FORMATS[1:2]))
        .mix(dict.fromkeys((x.name for x in profile.layers), FORMATS[1]))
        .loss
    )
    outer, inner = (mix.formats[f"model.layers.{b}.self_attn.q_proj"].width for b in (0, 4))
    assert outer and inner and outer.bits > inner.bits
    for block in range(8):
        experts = {mix.formats[f"model.layers.{block}.mlp.experts.{e}.up_proj"] for e in (0, 1)}
        assert len(experts) == 1
    assert solver.solve(Budget("size", mix.nbytes)).loss <= mix.loss + 1e-9
    assert solver.solve(Budget("loss", mix.ratio - 1 + 1e-9)).nbytes <= mix.nbytes + 1e-6


def test_a_sparsity_is_reached_and_a_pin_is_respected(profile: SensitivityProfile) -> None:
    solver = BudgetSolver(profile, formats=frozenset(FORMATS[3:]))
    pins = {profile.layers[0].name: "70%"}
    mix = solver.solve(Budget("sparsity", 0.5), pins)
    assert mix.sparsity >= 0.5 and str(mix.formats[profile.layers[0].name]) == "70%"
    front = solver.front()
    assert [m.nbytes for m in front] == sorted(m.nbytes for m in front)
    assert [m.loss for m in front] == sorted((m.loss for m in front), reverse=True)


@pytest.mark.parametrize(
    ("budget", "nearest"),
    [
        (Budget("size", 1000), "Choose 0.06MB or more"),
        (Budget("bits", 2), "Choose 2.25bits or more"),
        (Budget("sparsity", 0.8), "Choose 70% or less"),
        (Budget("size", 1e9), "Choose 0.4MB or less"),
        (Budget("bits", 16.1), "Choose 16bits or less"),
    ],
)
def test_an_impossible_budget_is_refused_with_the_nearest_possible_one(
    profile: SensitivityProfile, budget: Budget, nearest: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        BudgetSolver(profile, 1000).solve(budget)
    assert nearest in refused.value.do


def test_the_nearest_possible_budget_can_be_parsed_and_satisfied(
    profile: SensitivityProfile,
) -> None:
    """2.01MB is parsed as 2009999.9999999998 bytes."""
    solver = BudgetSolver(profile, 1_953_704)  # and 55,296 of the layers
    with pytest.raises(ConfigError, match=r"Choose 2\.01MB or more"):
        solver.solve(Budget("size", 2e6))
    assert solver.solve(Budget.parse("2.01MB")).nbytes == 2_009_000


@pytest.fixture
def timed(profile: SensitivityProfile) -> SensitivityProfile:
    """Profile whose layers take 10 ms in 16 bits and 0.5 ms more per bit; query and key are one
    matrix."""
    layers = [
        replace(x, name=x.name.replace("mlp.experts.0.up", "self_attn.k")) for x in profile.layers
    ]
    taken = {"dense": 10.0} | {str(f): 1 + f.width.bits / 2 for f in FORMATS if f.width}
    times = DecodingTimes(layers=taken, head={"dense": 0.0}, threads=1)
    return replace(profile, layers=tuple(layers), times=times)


def test_layers_of_one_matrix_share_a_format_under_a_budget_of_milliseconds(
    timed: SensitivityProfile,
) -> None:
    solver = BudgetSolver(timed, 0, frozenset(FORMATS[:3]))
    assert solver.uniform(FORMATS[1]).milliseconds == pytest.approx(2.5)
    mix = solver.solve(Budget("ms", 2.5))
    assert mix.milliseconds == pytest.approx(2.5, abs=0.02) and mix.milliseconds <= 2.5
    assert mix.loss < solver.uniform(FORMATS[1]).loss
    assert str(mix.budget("ms")) == "2.5ms"
    for at in range(0, len(timed.layers), 3):  # one matrix in the decoder
        assert len({mix.formats[x.name] for x in timed.layers[at : at + 2]}) == 1
    parted = dict.fromkeys((x.name for x in timed.layers), FORMATS[0])
    parted[timed.layers[0].name] = FORMATS[2]  # both are read in 4 bits
    assert solver.mix(parted).milliseconds == pytest.approx(2 + 2 / 24)
    for value, message in ((1.9, "Choose 2ms or more"), (11, "Choose 10ms or less")):
        with pytest.raises(ConfigError) as refused:
            solver.solve(Budget("ms", value))
        assert message in refused.value.do


@pytest.mark.parametrize(
    "change",
    [
        None,
        "x",
        [],
        {"threads": 0},
        {"layers": {"int3-g64": -1}},
        {"layers": {"int3-g64": "nan"}},
        {"layers": {"dense": float("inf")}},
        {"head": {"dense": 1e12}},
        {"more": 1},
        {"layers": dict.fromkeys(map(str, range(101)), 1.0)},
    ],
)
def test_damaged_times_are_ignored(timed: SensitivityProfile, change: object) -> None:
    stored = timed.times.model_dump() | change if isinstance(change, dict) else change
    assert profile_of("p", "toy", timed.layers, FORMATS, {}, stored).times is None
    with pytest.raises(ConfigError, match="did not measure decoding times"):
        BudgetSolver(replace(timed, times=None)).solve(Budget("ms", 5))


def test_a_format_without_a_time_is_not_used(timed: SensitivityProfile) -> None:
    times = DecodingTimes(layers={"int3-g64": 2.5, "int2-g64": 2.0}, head={}, threads=1)
    solver = BudgetSolver(replace(timed, times=times), 0, frozenset(FORMATS[:3]))
    assert {*solver.solve(Budget("ms", 2.4)).formats.values()} <= {*FORMATS[:2]}
    assert solver.solve(Budget("bits", 4.25)).milliseconds is None


def test_a_layer_with_damaged_figures_is_left_out() -> None:
    layers = [LinearShape(f"model.layers.{b}.q", b, "q", 64, 128) for b in range(3)]
    stored = {
        layers[0].name: np.zeros((len(FIGURES), len(FORMATS)), np.float32),
        layers[1].name: np.zeros((1, 1), np.float32),
    }
    assert profile_of("p", "toy", layers, FORMATS, stored).layers == (layers[0],)
