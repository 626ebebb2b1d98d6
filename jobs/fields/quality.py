"""What is measured besides perplexity: fields shared by the kinds that evaluate a model."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from backend.evaluation.harness import require_harness
from backend.models.facts import ModelFacts
from backend.models.layer_names import read_names

SAMPLE_PROMPTS = 4
DECODED_TOKEN_COST = 20.0  # of a token decoded alone, over one of a batch; measured
TASK_NAME = re.compile(r"[\w.\-]{1,100}")
MAX_TASKS = 20


class QualityConfig(BaseModel):
    """What is measured besides perplexity."""

    divergence: bool = Field(
        True,
        title="Divergence from the dense model",
        description="KL divergence and top-1 agreement of the kept stage on the evaluation text.",
        json_schema_extra={"advanced": True},
    )
    sample_tokens: int = Field(
        48,
        ge=0,
        le=512,
        title="Sample length",
        description="Greedy samples of the dense and the kept model, side by side. 0: none.",
        json_schema_extra={"unit": "tokens", "advanced": True},
    )
    tasks: str = Field(
        "",
        max_length=400,
        title="Zero-shot tasks",
        description="Names of lm-evaluation-harness tasks, as in piqa, arc_easy. Needs the extra "
        "slimscope[tasks].",
        json_schema_extra={"advanced": True},
    )
    task_limit: int = Field(
        0,
        ge=0,
        le=1_000_000,
        title="Questions per task",
        description="The first ones of each task. 0: all.",
        json_schema_extra={"unit": "questions", "advanced": True},
    )

    @field_validator("tasks")
    @classmethod
    def _names(cls, text: str) -> str:
        names = read_names(text)
        if len(names) > MAX_TASKS or not all(TASK_NAME.fullmatch(name) for name in names):
            raise ValueError(f"At most {MAX_TASKS} task names, separated by commas")
        return ", ".join(dict.fromkeys(names))

    @property
    def task_names(self) -> list[str]:
        return self.tasks.split(", ") if self.tasks else []


def check_quality(config: QualityConfig) -> tuple[str, ...]:
    """Refuse what cannot be measured here.

    Returns:
        Warnings that do not forbid the run.
    """
    if not config.task_names:
        return ()
    require_harness()
    return ("The estimate leaves out the zero-shot tasks.",)


def sample_flops(config: QualityConfig, facts: ModelFacts) -> float:
    """Floating-point operations of the samples of one model."""
    tokens = SAMPLE_PROMPTS * config.sample_tokens
    return 2.0 * facts.weights_per_token * DECODED_TOKEN_COST * tokens
