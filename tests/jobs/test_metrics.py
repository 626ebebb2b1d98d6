"""Tests of the metric registry, of figures in sentences, and of verdicts, with and without
significant differences between stages."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.metric_key import MetricKey
from backend.statistics.paired import paired_ratio
from backend.statistics.ratio import PairedRatio
from jobs import metrics
from jobs.dlqat import kind as dlqat
from jobs.evaluation import kind as evaluation
from jobs.metrics import BITS_PER_WEIGHT, METRICS, PERPLEXITY, Metric, metric, ordered
from jobs.sds import kind as sds
from jobs.wording import StageComparison, distinguishable, extent, fixed, relative_change
from tests.ui.lab import job, result
from ui.charts.lines import points_label
from ui.runs.columns import columns
from ui.runs.results import display_units, format_value
from ui.runs.rows import rows

PART = st.text(st.characters(exclude_characters="/@", exclude_categories=["Cc", "Cs"]), max_size=9)


def named(name: str) -> Metric:
    return metric(MetricKey.parse(name))


def test_every_metric_has_a_label_and_a_figure_a_definition() -> None:
    assert all(m.label and (not m.definition or m.definition[-1] == ".") for m in METRICS.values())
    assert all(family == m.name for family, m in METRICS.items())


@given(PART.filter(bool), PART, PART)
def test_a_name_is_read_as_it_was_written(family: str, stage: str, series: str) -> None:
    key = MetricKey(family, stage, series)
    assert MetricKey.parse(str(key)) == key


@pytest.mark.parametrize("name", ["", "/", "@", "a/", "a@", "pass@1/humaneval", "bytes/2:4/x"])
def test_any_text_is_a_name(name: str) -> None:
    assert str(MetricKey.parse(name)) == name and metric(MetricKey.parse(name)).title is not None


def test_a_series_is_described_by_its_family() -> None:
    entry = named("bytes/gptq_layout")
    assert (entry.name, entry.form, entry.better) == ("bytes/gptq_layout", "bytes", "lower")
    assert entry.label == "Size, gptq layout"
    assert entry.definition == METRICS["bytes"].definition
    assert metric(MetricKey("bytes", "dlqat", "gptq_layout")) == entry


def test_described_metrics_come_first_in_their_order() -> None:
    names = ["zzz", "speed_up/chat", "took", "aaa", "perplexity", "bytes/a", "zero_share"]
    assert [str(key) for key in ordered(map(MetricKey.parse, names))] == [
        "perplexity",
        "zero_share",
        "took",
        "aaa",
        "bytes/a",
        "speed_up/chat",
        "zzz",
    ]


def test_a_field_of_a_file_names_the_unit_of_its_value() -> None:
    fields = [named(name).field for name in ("perplexity", "zero_share", "top1_agreement", "took")]
    assert fields == ["perplexity", "zero_share", "top1_agreement_share", "took_seconds"]
    assert named("size").field == "size_bytes" and named("bytes/Q4_0").field == "bytes/Q4_0"
    assert named("heldout_loss").field == "heldout_loss_nats_per_token"


def test_a_metric_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Column, unit, direction and curve axis follow from the entry."""
    key = MetricKey("agreement")
    added = Metric(key, "Agreement", "Share.", "higher", "share", over="a block")
    monkeypatch.setattr(metrics, "METRICS", {**METRICS, "agreement": added})
    row = rows([job(1)], [result(1, "sds", "agreement", 0.25)])
    column = columns(row)["agreement"]
    assert (column.title, column.is_default) == ("Agreement, %", False)
    assert str(column.html(row[0])) == format_value(added, 0.25) == "25.00"
    assert points_label(key) == "points, each the mean over a block"
    points = pd.DataFrame({"family": ["agreement"], "step": [1], "value": [0.25]})
    assert display_units(points)["value"].tolist() == [25.0]


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_what_rounds_to_zero_has_no_sign(value: float, places: int) -> None:
    text = fixed(value, places)
    assert float(text.replace(",", "").replace("−", "-")) == pytest.approx(round(value, places))
    assert ("−" in text) == (round(value, places) < 0)


def test_figures_of_a_sentence_get_the_decimals_that_tell_them_apart() -> None:
    assert distinguishable([21.13, 43.72, 29.41]) == ["21.1", "43.7", "29.4"]
    assert distinguishable([1.496, 1.646, 1.592, 1.587]) == ["1.496", "1.646", "1.592", "1.587"]
    assert distinguishable([2.0, 2.0]) == ["2.0", "2.0"]
    assert distinguishable([1.0, 1.0 + 1e-9]) == ["1.0", "1.0"]
    assert distinguishable([1.4963, 1.5143, 1.50931, 1.50932]) == [
        "1.496",
        "1.514",
        "1.509",
        "1.509",
    ]
    assert extent([1.26, 1.261], "{:.2f}".format) == "1.26"


def test_a_change_that_rounds_to_nothing_is_none() -> None:
    assert relative_change(9.0, 10.0) == "10.0 % lower than"
    assert relative_change(10.3, 10.0) == "3.0 % higher than"
    assert relative_change(9.9999, 10.0) == relative_change(10.0, 10.0) == "equal to"


def test_the_figures_of_small_models_are_told_apart() -> None:
    values = {"dense": 1.496, "first": 1.646, "control": 1.592, "sds": 1.587}
    key_figure = sds.key_figure({(s, PERPLEXITY): v for s, v in values.items()}, "sds")
    assert key_figure is not None and key_figure.text == (
        "SDS reaches perplexity 1.587, 0.3 % lower than its control at 1.592; dense 1.496."
    )
    worse = sds.key_figure(
        {("dense", PERPLEXITY): 1.0, ("first", PERPLEXITY): 2.0, ("sds", PERPLEXITY): 2.1}, "sds"
    )
    assert worse is not None and worse.value == "+5.0 %" and "the first pruning" in worse.label
    figures = {("dense", PERPLEXITY): 1.51, ("gptq", PERPLEXITY): 1.53, ("dlqat", PERPLEXITY): 1.52}
    held = {(stage, BITS_PER_WEIGHT): 3.25 for stage in ("gptq", "dlqat")}
    for kept_stage, value, rival in (("gptq", "3.25 bits", False), ("dlqat", "−0.7 %", True)):
        bits = dlqat.key_figure(figures | held, kept_stage)
        assert bits.value == value and ("GPTQ at 1.53" in bits.text) == rival
    assert dlqat.key_figure(figures | held, "") is None
    figures |= {(s, PERPLEXITY): v for s, v in (("block-wise", 1.525), ("dlqat-kd", 1.51))}
    assert dlqat.key_figure(figures | held, "dlqat").rivals == ("block-wise", "gptq")
    sentence = dlqat.verdict(StageComparison({"dlqat": 1.52, "gptq": 1.53, "lora": 1.5201}))
    assert "rounding changes nothing measurable." in sentence


WINDOWS = 32


def stages(**shift: float) -> StageComparison:
    """Return stages with losses at a given distance from the first, with random noise per
    window."""
    random = np.random.default_rng(0)
    text = random.normal(3.0, 0.6, WINDOWS)  # texts differ far more than stages
    losses = {name: text + random.normal(amount, 0.02, WINDOWS) for name, amount in shift.items()}

    def ratio(first: str, second: str) -> PairedRatio | None:
        return paired_ratio(losses[first], losses[second])

    perplexity = {
        name: float(np.exp(window_losses.mean())) for name, window_losses in losses.items()
    }
    return StageComparison(perplexity, ratio)


def test_a_difference_has_an_interval_and_what_holds_nothing_is_not_told_apart() -> None:
    comparison = stages(a=0.0, b=0.2, c=0.0)
    assert comparison.order("a", "b") == "below" and comparison.order("b", "a") == "above"
    assert comparison.order("a", "c") == "" == comparison.order("c", "a")
    clause = comparison.clause("a", {"b": "B"})
    assert (
        clause.startswith("has a perplexity 18")
        and "% lower than B (1" in clause
        and clause.endswith(" %)")
    )
    assert comparison.clause("b", {"a": "A"}, "is").startswith("is 2")
    both = comparison.clause("a", {"c": "C", "b": "B"})
    assert both.startswith("is not significantly different") and " and has a perplexity 1" in both
    even = comparison.clause("a", {"c": "C"})
    assert even.startswith("is not significantly different from C (")
    assert "times its perplexity" in even


def test_without_losses_the_values_decide() -> None:
    comparison = StageComparison({"a": 9.0, "b": 10.0, "c": 10.0})
    assert comparison.order("a", "b") == "below" and comparison.order("b", "c") == ""
    assert (
        comparison.clause("a", {"b": "B", "c": "C"})
        == "has a perplexity 10.0 % lower than B and 10.0 % lower than C"
    )


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"first": 1.0, "control": 0.5, "sds": 0.3}, "its control ("),
        (
            {"first": 1.0, "control": 0.3, "sds": 0.3},
            "not significantly different from its control",
        ),
        ({"first": 1.0, "control": 0.3, "sds": 0.3}, "too short to decide if the re-dense"),
        ({"first": 1.0, "control": 0.3, "sds": 0.5}, "did not pay"),
        ({"first": 1.0, "sds": 0.5, "sds-blocks": 0.2}, "it has a perplexity 2"),
        ({"first": 1.0, "sds": 0.5, "sds-blocks": 0.5}, "it is not significantly different from"),
        (
            {"first": 1.0, "control": 0.7, "sds": 0.5, "first-blocks": 0.3, "sds-blocks": 0.2},
            "lower than the first pruning with block reconstruction (",
        ),
        (
            {"first": 1.0, "control": 0.5, "sds": 0.3, "first-blocks": 0.1, "sds-blocks": 0.2},
            "did not pay",
        ),
        (
            {"first": 1.0, "control": 0.5, "first-blocks": 0.2},
            "Block reconstruction has a perpl",
        ),
    ],
)
def test_the_verdict_on_sds(shift: dict[str, float], message: str) -> None:
    assert message in sds.verdict(stages(**shift))


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ({"gptq": 1.0, "dlqat": 0.3}, "% lower than GPTQ ("),
        ({"gptq": 0.3, "dlqat": 0.3}, "is not significantly different from GPTQ ("),
        ({"gptq": 0.3, "dlqat": 0.3}, "too short to decide if training helped."),
        ({"gptq": 0.3, "dlqat": 0.6}, "Training did not help"),
        ({"gptq": 1.0, "dlqat": 0.3, "lora": 0.3}, "changes nothing measurable"),
        ({"gptq": 1.0, "dlqat": 0.3, "dense": 0.5}, "below the dense model because"),
    ],
)
def test_the_verdict_on_dlqat(shift: dict[str, float], message: str) -> None:
    assert message in dlqat.verdict(stages(**shift))


@pytest.mark.parametrize(
    ("rise", "found", "then"),
    [
        (0.0, "No measurable loss on this text: perplexity ", ""),
        (1e-9, "No measurable loss on this text: perplexity ", ""),
        (0.05, "Small loss: perplexity ", ""),
        (
            0.3,
            "Medium loss: perplexity ",
            "Read its texts before use. To reduce the loss, use",
        ),
        (
            1.8,
            "Large loss: perplexity ",
            "no sense. To reduce the loss, use more bits, ",
        ),
    ],
)
def test_what_a_model_lost_is_said_in_plain_words(rise: float, found: str, then: str) -> None:
    loss, advice = stages(dense=0.0, dlqat=rise).lost("dlqat", "dense", dlqat.KIND.remedy)
    assert loss.startswith(found) and then in advice and bool(then) == bool(advice)
    assert ("×" in loss) is (rise > 1) and ("% higher" in loss) is (0.01 < rise < 1)


def test_the_verdict_on_an_evaluation() -> None:
    assert evaluation.verdict(stages(dense=0.0, model=0.2)).startswith("Perplexity is 2")
    alike = evaluation.verdict(stages(dense=0.0, model=0.0))
    assert alike.startswith("Perplexity is not significantly different from the")
    exact = evaluation.verdict(StageComparison({"dense": 4.0, "model": 5.0}))
    assert "25.0 % higher" in exact
