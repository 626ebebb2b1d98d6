"""Tests of verdicts, with and without significant differences between stages."""

import numpy as np
import pytest

from backend.statistics.paired import paired_ratio
from backend.statistics.ratio import PairedRatio
from jobs.dlqat import kind as dlqat
from jobs.evaluation import kind as evaluation
from jobs.sds import kind as sds
from jobs.wording import StageComparison

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
