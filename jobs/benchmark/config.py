"""The config of a decoding benchmark."""

from pydantic import field_validator

from backend.options import Options, option
from jobs.fields.gguf import types_named
from jobs.fields.model import ModelConfig
from jobs.fields.prompts import PromptConfig
from jobs.fields.types import NewTokens, Precision, TreeSize
from jobs.kind import JobConfig

NAME = "benchmark"


class TimingConfig(Options):
    """Which decoders are compared, and how they are timed."""

    drafters: str = option("", "Drafters", max_length=300, choices="drafters", many=True)
    """Finished runs of the kind amphista whose base is the model, such as amphista-0007; each
    alone, and as the fallback of prompt lookup."""
    lookup: bool = option(True, "Prompt lookup")
    """Also time prompt-lookup decoding, which needs no training."""
    pytorch: bool = option(False, "PyTorch loop")
    """Also time vanilla decoding in PyTorch, one token a pass as in transformers. On a CPU, the
    other decoders use the native decoder where it supports the model."""
    llama_cpp: str = option("", "llama.cpp", max_length=100, choices="gguf_types", many=True)
    """Also time llama.cpp on the model in these types of GGUF file, such as BF16 or Q4_0. Needs the
    package llama-cpp-python. Empty: none."""
    count: int = option(12, "Number of prompts", ge=1, le=10_000, unit="prompts")
    """Taken in turn from each task of the set."""
    max_new_tokens: NewTokens = option(64, ge=2, le=32768)
    rounds: int = option(3, "Rounds", ge=1, le=100, unit="rounds")
    """Timing repetitions (order shuffled); one extra warm-up round."""
    nodes: TreeSize = 0
    precision: Precision = "auto"

    @field_validator("llama_cpp")
    @classmethod
    def _known_types(cls, text: str) -> str:
        return ", ".join(types_named(text))


class BenchmarkJob(ModelConfig, TimingConfig, PromptConfig, JobConfig):
    """Base model, decoders and prompts."""
