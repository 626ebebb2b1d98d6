"""The config of a run that trains a drafter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from backend.drafters.config import ADVANCED, DrafterConfig, TrainingConfig
from backend.text.prompts import BUILT_IN, SELF, STORIES
from jobs.fields.drafters import DRAFTER_FOLDER, DRAFTER_KIND
from jobs.fields.model import ModelConfig
from jobs.fields.processes import ProcessesConfig
from jobs.fields.prompts import PromptConfig
from jobs.fields.types import CorpusName, PromptSet
from jobs.kind import JobConfig

NAME = DRAFTER_KIND
DRAFTER = DRAFTER_FOLDER  # the stage that is the whole drafter, and the folder it is saved in

PART = "part"  # prefix of the stages that are the parts of a drafter


class DataConfig(PromptConfig):
    """What the drafter is trained on."""

    prompts: PromptSet = Field(
        "auto",
        description="Prompts to generate training data from. auto: half built-in, half "
        "model-generated; stories for the toy. file:NAME.jsonl: your own; only the first turn is "
        "used.",
        examples=["auto", BUILT_IN, SELF, STORIES],
    )
    data: Literal["answers", "text"] = Field(
        "answers",
        title="Training data",
        description="answers: responses the base model generates, the distribution the drafter "
        "has to predict. text: windows of a corpus.",
    )
    answers: int = Field(
        1024,
        ge=2,
        le=10**7,
        title="Sequences",
        description="Responses, or windows of text.",
        json_schema_extra={"unit": "sequences"},
    )
    answer_tokens: int = Field(
        128,
        ge=8,
        le=32768,
        title="Max response tokens",
        description="Maximum response length (exact length for corpus windows).",
        json_schema_extra={"unit": "tokens"},
    )
    heldout: int = Field(
        48,
        ge=1,
        le=10**5,
        title="Held-out sequences",
        description="Kept apart to measure head accuracy and to choose the tree.",
        json_schema_extra={"unit": "sequences", **ADVANCED},
    )
    training_text: CorpusName = Field(
        "auto",
        title="Corpus",
        description="Used only if the training data is text.",
        json_schema_extra={"choices": "evaluation_text", **ADVANCED},
    )


class AmphistaJob(
    ModelConfig, DrafterConfig, DataConfig, TrainingConfig, ProcessesConfig, JobConfig
):
    """Base model, drafter architecture, training data and budget."""
