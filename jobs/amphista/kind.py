"""Training a drafter as a kind of job."""

from collections.abc import Mapping
from typing import Any

from backend.drafters.config import ARMS, SHAPE, arm_of, head_stage
from jobs.amphista.config import DRAFTER, NAME, AmphistaJob
from jobs.amphista.estimate import requirements
from jobs.kind import KeyFigure, Kind, Values
from jobs.metrics import ACCEPTED_LENGTH, DRAFT_COST, PREDICTED_SPEED_UP
from jobs.wording import fixed, times

MIN_GAIN = 0.05  # of speed; a smaller one would not be measurable


def headline(values: Mapping[str, Any]) -> list[str]:
    """What tells a drafter from others first: its arm, how long it learnt, and from how much."""
    minutes, steps = values.get("minutes") or 0, values.get("steps") or 0
    learnt = f"{minutes:g} min" if minutes else f"{steps:,} steps"
    written = "texts" if values.get("data") == "text" else "answers"
    return [arm_of(values), learnt, f"{values.get('answers') or 0:,} {written}"]


def forecast(values: Values) -> str:
    """How fast drafting will be on the machine that trained the drafter."""
    gain, cost = (values.get((DRAFTER, name)) for name in (PREDICTED_SPEED_UP, DRAFT_COST))
    if gain is None or cost is None:
        return ""
    none = " (no gain)" if gain < 1 + MIN_GAIN else ""
    return (
        f"Predicted {times(gain)} the speed of plain decoding on this machine{none}; one "
        f"draft costs {fixed(cost, 2)} of a forward pass of the base model."
    )


def brief(values: Values, kept: str = "") -> KeyFigure | None:
    length = values.get((DRAFTER, ACCEPTED_LENGTH))
    return KeyFigure(f"{fixed(length, 2)} tokens", "a pass, with all heads", "") if length else None


NOTES = {
    "Amphista": "Drafting heads that attend to each other.",
    "Medusa": "Independent heads.",
    "Hydra": "Heads that read the draft tokens before theirs. Highest acceptance in our tests.",
    "EAGLE": "Token after token from its own states, in the manner of EAGLE-3.",
}
KIND = Kind(
    name=NAME,
    title="Amphista drafter",
    summary="Train heads that draft several tokens at once, so that the base model verifies them "
    "in one pass and generates the same text faster.",
    config=AmphistaJob,
    requirements=requirements,
    run="jobs.amphista.run:run",
    order=30,
    main_fields=("minutes", "heads"),
    compresses=True,
    saves="drafter",
    stages={DRAFTER: "Drafter", **{head_stage(k): f"Head {k}" for k in range(1, 11)}},
    headline=headline,
    headline_fields=frozenset({*SHAPE, "minutes", "steps", "answers", "data"}),
    has_models=False,
    recipes={name: ARMS[name] for name in NOTES},
    notes=NOTES,
    presets={
        "quick look": {"minutes": 0.5, "answers": 112, "answer_tokens": 64, "heldout": 16},
        "default": {},
        "thorough": {"minutes": 60, "answers": 6000},
    },
    forecast=forecast,
    brief=brief,
)
