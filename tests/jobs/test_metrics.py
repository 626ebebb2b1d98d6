"""The registry of figures."""

from __future__ import annotations

import pytest

from jobs.metrics import METRICS, metric


def test_every_figure_has_a_label_a_definition_and_a_home() -> None:
    assert all(m.label and m.definition.endswith(".") for m in METRICS.values())
    assert all(name == m.name for name, m in METRICS.items())


@pytest.mark.parametrize(
    ("name", "better"),
    [("perplexity", "lower"), ("tokens_per_second", "higher"), ("zero_share", "higher")],
)
def test_a_figure_says_which_way_is_better(name: str, better: str) -> None:
    assert metric(name).better == better


def test_a_member_is_described_by_its_family() -> None:
    found = metric("bytes/gptq_layout")
    assert (found.name, found.form, found.better) == ("bytes/gptq_layout", "bytes", "lower")
    assert found.label == "Size, gptq layout"
    assert found.definition == METRICS["bytes"].definition


def test_what_nobody_described_is_called_by_itself_and_judged_by_nobody() -> None:
    found = metric("odd_thing/of mine")
    assert (found.label, found.better, found.definition) == ("Odd thing, of mine", "", "")
    assert metric("/").name == "/"


def test_units_stand_in_the_title() -> None:
    assert metric("zero_share").title == "Zeros, %"
    assert metric("heldout_loss").title == "Held-out loss, nats per token"
    assert metric("bytes").title == "Size"


def test_a_field_of_a_file_names_the_unit_of_its_value() -> None:
    fields = [metric(name).field for name in ("perplexity", "zero_share", "top1_agreement", "took")]
    assert fields == ["perplexity", "zero_share", "top1_agreement_share", "took_seconds"]
    assert metric("size").field == "size_bytes" and metric("bytes/Q4_0").field == "bytes/Q4_0"
    assert metric("heldout_loss").field == "heldout_loss_nats_per_token"
