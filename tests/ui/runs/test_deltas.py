"""Signs, arrows and verdicts of differences, and when none is told."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.metric_key import MetricKey
from jobs.metrics import METRICS, Metric, metric
from tests.ui.lab import OTHER, job, measured, result
from ui.runs.deltas import delta, delta_html, difference_html, incomparable_because, percent, signed
from ui.runs.rows import RunRow, rows

PLAIN = Metric(MetricKey("odd"), "Odd")


@pytest.mark.parametrize(
    ("name", "value", "base", "direction"),
    [
        ("perplexity", 12.0, 10.0, "worse"),
        ("perplexity", 9.0, 10.0, "better"),
        ("tokens_per_second", 9.0, 10.0, "worse"),
        ("tokens_per_second", 12.0, 10.0, "better"),
        ("perplexity", 10.0, 10.0, "even"),
        ("perplexity", 10.001, 10.0, "even"),  # would be written as 0.0 %
        ("steps", 12.0, 10.0, ""),
        ("never heard of", 12.0, 10.0, ""),
    ],
)
def test_metrics_say_what_is_better(name: str, value: float, base: float, direction: str) -> None:
    assert delta(metric(MetricKey.parse(name)), value, base).direction == direction


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_what_is_better_one_way_is_worse_the_other(a: float, b: float) -> None:
    there, back = (delta(METRICS["perplexity"], *pair) for pair in ((a, b), (b, a)))
    assert there.change == -back.change
    turned = {"better": "worse", "worse": "better", "even": "even"}
    if "even" not in (there.direction, back.direction):
        assert turned[there.direction] == back.direction
    sign = signed(PLAIN, there.change, a)
    assert sign[0] == ("+" if a > b else "−" if a < b else "±")


@pytest.mark.parametrize(
    ("name", "change", "near", "text"),
    [
        ("perplexity", -0.0382, 1.573, "−0.038"),
        ("perplexity", 1.2, 11.2, "+1.20"),
        ("perplexity", 0.00004, 1.573, "+4.0e−5"),
        ("zero_share", 0.2, 0.7, "+20.00"),
        ("bytes", -93e6, 262e6, "−93.0\u00a0MB"),
        ("seconds", 75.0, 200.0, "+1\u00a0min\u00a015\u00a0s"),
        ("steps", -1200.0, 5000.0, "−1,200"),
        ("perplexity", 0.0, 1.0, "±0"),
    ],
)
def test_changes_are_written_like_figures(name: str, change: float, near: float, text: str) -> None:
    assert signed(metric(MetricKey.parse(name)), change, near) == text


def pair(**other: object) -> tuple[RunRow, RunRow]:
    text = {"text": OTHER} if other.get("text") else {}
    one, two = rows(
        [job(1), job(2, environment=other.get("environment", {}))],
        [*measured(1, 12.0), *measured(2, 11.0, **text)],
    )
    return two, one


def test_nothing_is_compared_across_texts() -> None:
    mine, base = pair(text=True)
    assert incomparable_because(mine, base, MetricKey("perplexity")) == "different text"
    assert delta_html(MetricKey("perplexity"), mine, base) == (
        '<span class="delta" title="Measured on different text">different text</span>'
    )
    assert "▲" not in delta_html(MetricKey("zero_share"), mine, base)  # no text: equal shares
    assert "±0" in delta_html(MetricKey("zero_share"), mine, base)


def test_a_loss_on_the_calibration_text_is_only_compared_on_the_same_one() -> None:
    mine, base = pair()
    assert "▼" in delta_html(MetricKey("heldout_loss"), mine, base)
    elsewhere = {"text": {"calibration": {"sha256": "c" * 64}}}
    mine, base = pair(environment=elsewhere)
    assert incomparable_because(mine, base, MetricKey("heldout_loss")) == "different text"
    assert incomparable_because(mine, base, MetricKey("perplexity")) == ""


def test_speeds_are_only_compared_on_one_machine_and_task() -> None:
    fast, slow = rows(
        [job(1), job(2)],
        [
            result(1, "run", "tokens_per_second", 40.0, device="cpu", task="chat"),
            result(2, "run", "tokens_per_second", 90.0, device="cuda", task="chat"),
        ],
    )
    assert incomparable_because(fast, slow, MetricKey("tokens_per_second")) == "different device"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"cpu": "B"}, "different processor"),
        ({"threads": 2}, "different number of threads"),
        ({"device": "cuda"}, "different device"),
        ({}, ""),
    ],
)
def test_times_and_speeds_are_only_compared_on_one_machine(
    other: dict[str, object], reason: str
) -> None:
    machine = {"device": "cpu", "cpu": "A", "threads": 1}
    one, two = rows(
        [job(1, environment=machine), job(2, environment=machine | other)],
        [result(n, "sds", name, 2.0) for n in (1, 2) for name in ("speed_up", "perplexity")],
    )
    for name in ("took", "speed_up"):
        assert incomparable_because(two, one, MetricKey(name)) == reason
    assert incomparable_because(two, one, MetricKey("perplexity")) == ""


def test_speeds_of_two_decoders_are_not_compared() -> None:
    one, two = rows(
        [job(1), job(2)],
        [
            row
            for n, decoder in ((1, "AVX2"), (2, "AVX-512"))
            for row in (
                result(n, "sds", "tokens_per_second", 40.0, decoder=decoder),
                result(n, "sds", "speed_up", 2.0),
            )
        ],
    )
    assert incomparable_because(two, one, MetricKey("speed_up")) == "different decoder"


def test_the_time_that_chose_a_decoder_is_no_condition() -> None:
    one, two = rows(
        [job(1), job(2)],
        [
            result(
                n, "sds", "perplexity", 2.0, decoder=f"native (AVX2); fastest here: {n} × the time"
            )
            for n in (1, 2)
        ],
    )
    assert incomparable_because(two, one, MetricKey("perplexity")) == ""


def test_an_arrow_and_a_word_stand_beside_the_color() -> None:
    of = METRICS["perplexity"]
    html = difference_html(of, delta(of, 12.0, 10.0), 12.0, relative=True)
    assert re.search(
        r'class="delta worse"><i aria-hidden="true">▲</i>\+2\.00 \(\+20\.0\u00a0%\)', html
    )
    assert '<span class="hidden"> worse</span>' in html
    assert "(" not in difference_html(of, delta(of, 10.0, 10.0), 10.0, relative=True)
    assert percent(None) == "" and percent(-0.024) == "−2.4\u00a0%"
