"""Choice of the kept stage by losses on held-out windows."""

from collections.abc import Sequence

import numpy as np
import pytest

from backend.calibration.kept_stage import choose

LABELS = {"gptq": "GPTQ", "m": "Magnitudes only", "qat": "DL-QAT", "lora": "LoRA (control)"}
STAGES = ["gptq", "m", "qat"]
TEXT = np.linspace(2.5, 4.0, 12)  # windows differ more than stages
NOISE = 0.01 * np.cos(np.arange(12))  # noise of a difference, with a mean near 0


def losses(**shifts: float | Sequence[float]) -> dict[str, list[float]]:
    """Losses of stages that differ from those of the text by a shift."""
    return {stage: (TEXT + shift).tolist() for stage, shift in shifts.items()}


@pytest.mark.parametrize(
    ("shifts", "kept", "message"),
    [
        (
            {"gptq": 0, "m": 0.01, "qat": -0.1 + NOISE},
            "qat",
            ["Kept: DL-QAT. Its perplexity on held-out text is 9.5 % lower than with GPTQ (9."],
        ),
        (
            {"gptq": 0, "m": NOISE - 0.001, "qat": 0.1 + NOISE},
            "gptq",
            ["Kept: GPTQ. The difference to Magnitudes only is undecided on held-out", " to +"],
        ),
        (
            {"gptq": 0, "m": -0.05 + NOISE, "qat": -0.051 + 2 * NOISE},
            "m",
            [" lower than with GPTQ (", " %). The difference to DL-QAT is undecided"],
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
def test_the_simplest_stage_not_significantly_worse_than_the_best_is_kept(
    shifts: dict, kept: str, message: list[str]
) -> None:
    actual = choose(losses(**shifts), STAGES, LABELS, ["lora"])
    assert actual.stage == kept
    assert all(text in actual.reason for text in message), actual.reason
    assert actual.reason.startswith(f"Kept: {LABELS[kept]}.")
    assert ("never kept" in actual.reason) == (message[0].startswith("LoRA"))


@pytest.mark.parametrize(
    ("count", "kept", "message"),
    [(4, "gptq", "4 windows are too few to decide"), (5, "qat", "39.3 % lower than with GPTQ")],
)
def test_too_few_windows_keep_the_simplest_stage(count: int, kept: str, message: str) -> None:
    few = {s: values[:count] for s, values in losses(gptq=0, m=0.1, qat=-0.5).items()}
    actual = choose(few, STAGES, LABELS)
    assert actual.stage == kept and message in actual.reason


def test_the_reason_mentions_a_lack_of_candidates_or_evidence() -> None:
    assert choose({}, STAGES, LABELS).stage == "qat"
    assert "without evidence: no text was held out" in choose({}, STAGES, LABELS).reason
    only = choose(losses(gptq=0, qat=-1.0), ["gptq"], LABELS)
    assert (only.stage, only.reason) == ("gptq", "Kept: GPTQ. It is the only candidate.")
