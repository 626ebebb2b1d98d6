"""Figures in sentences: no negative zero, and different ones read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.wording import apart, extent, fixed, relative_change


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_what_rounds_to_zero_has_no_sign(value: float, places: int) -> None:
    text = fixed(value, places)
    assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(round(value, places))
    assert ("−" in text) == (round(value, places) < 0)


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
