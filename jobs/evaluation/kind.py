"""Evaluation as a kind of job."""

from jobs.comparison import StageComparison
from jobs.evaluation.config import DENSE, LABELS, MODEL, NAME, EvaluationJob
from jobs.evaluation.estimate import requirements
from jobs.kind import Kind


def verdict(stages: StageComparison) -> str:
    if not {DENSE, MODEL} <= stages.perplexity.keys():
        return ""
    return f"Perplexity {stages.clause(MODEL, {DENSE: 'the dense one'}, 'is')}."


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
