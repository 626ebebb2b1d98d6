"""The sentence above a chart says what its figures say, and nothing where they say nothing."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from jobs.benchmark.report import DecoderReport
from ui.charts import headlines


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([("Dense", 20.0), ("Pruned", 120.0), ("SDS", 70.0)],
         "SDS wins back 50 % of the perplexity lost to pruned"),
        ([("Dense", 20.0), ("SDS", 30.0)], "SDS raises perplexity from 20.00 to 30.00"),
        ([("Dense", 20.0), ("Trained", 10.0)], "Trained lowers perplexity from 20.00 to 10.00"),
        ([("Dense", 20.0), ("8 bits", 20.1)], "8 bits keeps the perplexity of 20.00"),
        ([("Dense", 20.0)], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_stages(values: list[tuple[str, float]], sentence: str) -> None:
    assert headlines.of_stages(values) == sentence


def test_curves() -> None:
    frame = pd.DataFrame({"Step": [1, 2, 3], "A": [3.0, 2.0, 1.0], "B": [1.0, 1.0, None]})
    assert headlines.of_curves(frame, "Loss") == "A: loss falls from 3.00 to 1.00"
    assert headlines.of_curves(frame[["Step", "A"]], "Loss") == "Loss falls from 3.00 to 1.00"
    assert headlines.of_curves(frame[["Step", "B"]], "Rate") == "Rate stays near 1.00"
    named = headlines.of_curves(frame, "Loss", main="B")
    assert named == "B: loss stays near 1.00"
    assert headlines.of_curves(frame.iloc[:1], "Loss") == ""
    frame = pd.DataFrame({"Block": [0, 1, 2], "A": [3.0, 1.0, 2.0], "B": [1.0, None, None]})
    said = headlines.of_blocks(frame, "Error", main="A")
    assert said == "A: error is largest in block 0, 3.00, and smallest in block 1, 1.00"
    alone = headlines.of_blocks(frame[["Block", "A"]], "Error")
    assert alone.startswith("Error is largest in block 0")
    assert headlines.of_blocks(frame[["Block", "B"]], "Error") == ""


def test_a_gain_that_one_repetition_does_not_show_is_none() -> None:
    rows = [("Lookup", 1.2, True), ("Heads", 1.3, False)]
    faster = "Lookup decodes 1.20 × as fast as plain decoding"
    assert headlines.of_speed(rows) == faster  # not the one that only seems faster
    assert headlines.of_speed(rows[1:]) == headlines.NO_GAIN
    assert headlines.of_speed([]) == ""
    shown = DecoderReport("lookup", speed_up=1.2, ranges={"speed_up": (0.98, 1.3)})
    assert not shown.faster and not replace(shown, speed_up=1.02, ranges={}).faster
    assert replace(shown, ranges={"speed_up": (1.1, 1.3)}).faster
    even = headlines.of_break_even([("A", 1.5, 1.2), ("B", 2.0, 2.5)])
    assert even == "A yields 1.50 tokens per step, more than the 1.20 it needs to pay"
    parts = headlines.of_parts("A", {"Draft": 1.0, "Verify": 3.0})
    assert parts == "Verify takes 75 % of a step of A" and headlines.of_parts("A", {}) == ""
    assert headlines.of_front(1, 3) == "1 of 3 runs is on the Pareto front"
    assert headlines.lower("Loss") == "loss" and headlines.lower("KL divergence") == "KL divergence"
