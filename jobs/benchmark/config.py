"""The config of a decoding benchmark."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from jobs.fields.gguf import types_named
from jobs.fields.model import ModelConfig
from jobs.fields.prompts import PromptConfig
from jobs.fields.types import NewTokens, Precision, TreeSize
from jobs.kind import JobConfig

NAME = "benchmark"
TREE_PROMPTS = 4  # on which trees of other sizes are timed
TREE_SIZES = (2, 4, 8, 16, 32)


class TimingConfig(BaseModel):
    """Which decoders are compared, and how they are timed."""

    drafters: str = Field(
        "",
        max_length=300,
        title="Drafters",
        description="Finished runs of the kind amphista whose base is the model, such as "
        "amphista-0007; each alone, and as the fallback of prompt lookup.",
        json_schema_extra={"choices": "drafters", "many": True},
    )
    lookup: bool = Field(
        True,
        title="Prompt lookup",
        description="Also time prompt-lookup decoding, which needs no training.",
    )
    pytorch: bool = Field(
        False,
        title="PyTorch loop",
        description="Also time vanilla decoding in PyTorch, one token a pass as in transformers. "
        "On a CPU, the other decoders use the native decoder where it supports the model.",
    )
    llama_cpp: str = Field(
        "",
        max_length=100,
        title="llama.cpp",
        description="Also time llama.cpp on the model in these types of GGUF file, such as BF16 or "
        "Q4_0. Needs the package llama-cpp-python. Empty: none.",
        json_schema_extra={"choices": "gguf_types", "many": True},
    )
    count: int = Field(
        12,
        ge=1,
        le=10_000,
        title="Number of prompts",
        description="Taken in turn from each task of the set.",
        json_schema_extra={"unit": "prompts"},
    )
    max_new_tokens: NewTokens = Field(64, ge=2, le=32768)
    rounds: int = Field(
        3,
        ge=1,
        le=100,
        title="Rounds",
        description="Timing repetitions (order shuffled); one extra warm-up round.",
        json_schema_extra={"unit": "rounds"},
    )
    nodes: TreeSize = 0
    try_sizes: bool = Field(
        False,
        title="Try tree sizes",
        description=f"Also time each drafter with trees of {', '.join(map(str, TREE_SIZES))} "
        f"nodes, on {TREE_PROMPTS} prompts.",
        json_schema_extra={"advanced": True},
    )
    precision: Precision = "auto"

    @field_validator("llama_cpp")
    @classmethod
    def _known_types(cls, text: str) -> str:
        return ", ".join(types_named(text))


class BenchmarkJob(ModelConfig, TimingConfig, PromptConfig, JobConfig):
    """Base model, decoders and prompts."""
