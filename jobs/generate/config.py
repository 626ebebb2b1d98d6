"""The config of a generation run."""

from pydantic import Field

from backend.decoding.limits import MIN_PENALTY, Temperature
from jobs.fields.model import DEFAULT_MODEL
from jobs.fields.types import NewTokens, Precision, TreeSize
from jobs.kind import JobConfig

NAME = "generate"
STOPS = "|"


class GenerateJob(JobConfig):
    """Prompt, models and sampling."""

    prompt: str = Field(
        "Explain in three sentences why the sky is blue.",
        min_length=1,
        max_length=8000,
        title="Prompt",
        description="Sent to every selected model.",
        json_schema_extra={"lines": 4},
    )
    sides: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        max_length=1000,
        title="Models and drafters",
        description="1–4 models, compressed runs or Amphista drafters.",
        json_schema_extra={"many": True},
    )
    system: str = Field(
        "",
        max_length=4000,
        title="System prompt",
        description="Tells the models how to answer.",
        json_schema_extra={"lines": 3},
    )
    max_new_tokens: NewTokens = Field(96, ge=1, le=4096)
    temperature: Temperature = Field(
        0.0, ge=0, le=5, title="Temperature", description="0: greedy decoding."
    )
    top_k: int = Field(
        0,
        ge=0,
        le=10**6,
        title="Top-k",
        description="Samples from the k likeliest tokens. 0: from all.",
        json_schema_extra={"advanced": True},
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        title="Top-p",
        description="Samples from the smallest set of tokens with this total probability.",
        json_schema_extra={"advanced": True},
    )
    repetition_penalty: float = Field(
        1.0,
        ge=MIN_PENALTY,
        le=10,
        title="Repetition penalty",
        description="1: none. Each draft token is penalised by its own path.",
        json_schema_extra={"advanced": True},
    )
    stop: str = Field(
        "",
        max_length=300,
        title="Stop strings",
        description=f"Strings that end a response, separated by {STOPS}",
        json_schema_extra={"advanced": True},
    )
    chat: bool = Field(
        True,
        title="Chat template",
        description="Applies the model's chat template, if it has one.",
        json_schema_extra={"advanced": True},
    )
    nodes: TreeSize = Field(0, json_schema_extra={"unit": "nodes", "advanced": True})
    lookup: bool = Field(
        False,
        title="Prompt lookup first",
        description="Prompt-lookup decoding: draft by n-gram match in the context; fall back to "
        "the drafter.",
    )
    precision: Precision = "auto"
