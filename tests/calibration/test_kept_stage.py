"""Which stage a run keeps, by the losses on its held-out windows."""

from collections.abc import Sequence

import numpy as np
import pytest

from backend.calibration.kept_stage import choose

LABELS = {"gptq": "GPTQ", "m": "Magnitudes only", "qat": "DL-QAT", "lora": "LoRA (control)"}
STAGES = ["gptq", "m", "qat"]
TEXT = np.linspace(2.5, 4.0, 12)  # windows differ more than stages do
NOISE = 0.01 * np.cos(np.arange(12))  # of a difference, with a mean near 0


def losses(**shifts: float | Sequence[float]) -> dict[str, list[float]]:
    """Losses of the stages: those of the text, shifted."""
    return {stage: (TEXT + shift).tolist() for stage, shift in shifts.items()}


@pytest.mark.parametrize(
    ("shifts", "kept", "said"),
    [
        (
            {"gptq": 0, "m": 0.01, "qat": -0.1 + NOISE},
            "qat",
            ["Kept: DL-QAT. Its perplexity on held-out text is 9.5 % lower than with GPTQ (9."],
        ),
        (
            {"gptq": 0, "m": NOISE - 0.001, "qat": 0.1 + NOISE},
            "gptq",
            ["Kept: GPTQ. Magnitudes only is not better on held-out text (perplexity −0.", " to +"],
        ),
        (
            {"gptq": 0, "m": -0.05 + NOISE, "qat": -0.051 + 2 * NOISE},
            "m",
            [" lower than with GPTQ (", " %). DL-QAT is not better"],
        ),
        (
            {"gptq": 0, "m": 0, "qat": 0.2},
            "gptq",
            ["Kept: GPTQ. DL-QAT is not better", "Magnitudes only is equal to GPTQ."],
        ),
        (
            {"gptq": 0, "m": 0, "qat": 0},
            "gptq",
            ["Kept: GPTQ.", "DL-QAT is equal to GPTQ."],
        ),
        (
            {"gptq": 0.1, "m": 0, "qat": 0},
            "m",
            ["lower than with GPTQ", "DL-QAT is equal to Magnitudes only."],
        ),
        (
            {"gptq": 0, "m": 0.1, "qat": 0.2, "lora": -0.5},
            "gptq",
            ["LoRA (control) is better on held-out text, but controls are never kept."],
        ),
        ({"gptq": 0, "m": 0.1, "qat": 0.2, "lora": NOISE}, "gptq", ["Magnitudes only is not"]),
    ],
)
def test_the_simplest_that_is_not_told_apart_from_the_best_is_kept(
    shifts: dict, kept: str, said: list[str]
) -> None:
    found = choose(losses(**shifts), STAGES, LABELS, ["lora"])
    assert found.stage == kept
    assert all(text in found.reason for text in said), found.reason
    assert found.reason.startswith(f"Kept: {LABELS[kept]}.")
    assert ("never kept" in found.reason) == (said[0].startswith("LoRA"))


@pytest.mark.parametrize(
    ("count", "kept", "said"),
    [(4, "gptq", "4 windows are too few to decide"), (5, "qat", "39.3 % lower than with GPTQ")],
)
def test_too_few_windows_are_no_evidence(count: int, kept: str, said: str) -> None:
    few = {s: each[:count] for s, each in losses(gptq=0, m=0.1, qat=-0.5).items()}
    found = choose(few, STAGES, LABELS)
    assert found.stage == kept and said in found.reason


def test_without_a_choice_or_without_evidence_that_is_said() -> None:
    assert choose({}, STAGES, LABELS).stage == "qat"
    assert "without evidence: no text was held out" in choose({}, STAGES, LABELS).reason
    only = choose(losses(gptq=0, qat=-1.0), ["gptq"], LABELS)
    assert (only.stage, only.reason) == ("gptq", "Kept: GPTQ. It is the only candidate.")
