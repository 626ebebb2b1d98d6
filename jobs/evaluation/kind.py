"""Evaluation as a kind of job."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.evaluation.config import DENSE, LABELS, MODEL, NAME, EvaluationJob
from jobs.evaluation.estimate import requirements
from jobs.kind import Kind
from jobs.wording import relative_change


def verdict(perplexity: Mapping[str, float]) -> str:
    """What compression cost, in words. `perplexity`: stage -> value."""
    dense, model = perplexity.get(DENSE), perplexity.get(MODEL)
    if not dense or model is None:
        return ""
    return f"Perplexity is {relative_change(model, dense)} the dense one."


KIND = Kind(
    name=NAME,
    title="Evaluation",
    summary="Quality, size and speed of a saved model, beside the dense model it was made of.",
    config=EvaluationJob,
    requirements=requirements,
    run="jobs.evaluation.run:run",
    order=60,
    main_fields=("dense", "speed"),
    stages=LABELS,
    verdict=verdict,
    presets={
        "quick look": {"windows": 8, "context": 256, "sample_tokens": 24},
        "default": {},
        "long context": {"windows": 40, "context": 2048},
    },
)
