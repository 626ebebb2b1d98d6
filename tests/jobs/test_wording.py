"""Figures in sentences: no negative zero, and different ones read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.comparison import StageComparison
from jobs.dlqat import kind as dlqat
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY
from jobs.sds import kind as sds
from jobs.wording import apart, extent, fixed, relative_change, signed


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_what_rounds_to_zero_has_no_sign(value: float, places: int) -> None:
    text = fixed(value, places)
    assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(round(value, places))
    assert ("−" in text) == (round(value, places) < 0)


def test_changes_have_their_sign() -> None:
    assert [signed(v, 1) for v in (7.72, -0.34, 0.04, -0.04)] == ["+7.7", "−0.3", "0.0", "0.0"]
    assert signed(1234.5, 1) == "+1,234.5"


def test_figures_of_a_sentence_get_the_decimals_that_tell_them_apart() -> None:
    assert apart([21.13, 43.72, 29.41]) == ["21.1", "43.7", "29.4"]
    assert apart([1.496, 1.646, 1.592, 1.587]) == ["1.496", "1.646", "1.592", "1.587"]
    assert apart([2.0, 2.0]) == ["2.0", "2.0"]
    assert apart([1.0, 1.0 + 1e-9]) == ["1.0", "1.0"]
    assert apart([1.4963, 1.5143, 1.50931, 1.50932]) == ["1.496", "1.514", "1.509", "1.509"]
    assert extent([1.26, 1.261], "{:.2f}".format) == "1.26"


def test_a_change_that_rounds_to_nothing_is_none() -> None:
    assert relative_change(9.0, 10.0) == "10.0 % lower than"
    assert relative_change(10.3, 10.0) == "3.0 % higher than"
    assert relative_change(9.9999, 10.0) == relative_change(10.0, 10.0) == "equal to"


def test_the_figures_of_small_models_are_told_apart() -> None:
    values = {"dense": 1.496, "first": 1.646, "control": 1.592, "sds": 1.587}
    told = sds.key_figure({(s, PERPLEXITY): v for s, v in values.items()}, "sds")
    assert told is not None and told.text == (
        "Perplexity 1.496 dense, 1.646 pruned, 1.592 only adjusted, 1.587 after SDS. "
        "In cross-entropy, 38 %."
    )
    worse = sds.key_figure({("dense", PERPLEXITY): 1.0, ("first", PERPLEXITY): 2.0,
                            ("sds", PERPLEXITY): 2.001}, "sds")  # fmt: skip
    assert worse is not None and worse.value == "0 %"
    figures = {("dense", PERPLEXITY): 1.51, ("gptq", PERPLEXITY): 1.53, ("dlqat", PERPLEXITY): 1.52}
    held = {(stage, BITS_PER_WEIGHT): 3.25 for stage in ("gptq", "dlqat")}
    for kept in ("gptq", "dlqat"):
        bits = dlqat.key_figure(figures | held, kept)
        assert bits is not None
        assert bits.text == "Perplexity 1.51 dense, 1.53 with GPTQ, 1.52 with DL-QAT."
    assert dlqat.key_figure(figures | held, "") is None
    said = dlqat.verdict(StageComparison({"dlqat": 1.52, "gptq": 1.53, "lora": 1.5201}))
    assert "rounding itself changes nothing measurable." in said
