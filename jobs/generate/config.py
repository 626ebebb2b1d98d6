"""The config of a generation run."""

from backend.decoding.limits import MIN_PENALTY, Temperature
from backend.options import option
from jobs.fields.model import DEFAULT_MODEL
from jobs.fields.types import NewTokens, Precision, TreeSize
from jobs.kind import JobConfig

NAME = "generate"
STOPS = "|"
ASKED = "Explain in three sentences why the sky is blue."


class GenerateJob(JobConfig):
    """Prompt, models and sampling."""

    prompt: str = option(ASKED, "Prompt", min_length=1, max_length=8000, lines=4)
    """Sent to every selected model."""
    sides: str = option(
        DEFAULT_MODEL, "Models and drafters", min_length=1, max_length=1000, many=True
    )
    """1–4 models, compressed runs or Amphista drafters."""
    system: str = option("", "System prompt", max_length=4000, lines=3)
    """Tells the models how to answer."""
    max_new_tokens: NewTokens = option(96, ge=1, le=4096)
    temperature: Temperature = option(0.0, "Temperature", ge=0, le=5)
    """0: greedy decoding."""
    top_k: int = option(0, "Top-k", ge=0, le=10**6, advanced=True)
    """Samples from the k likeliest tokens. 0: from all."""
    top_p: float = option(1.0, "Top-p", gt=0, le=1, advanced=True)
    """Samples from the smallest set of tokens with this total probability."""
    repetition_penalty: float = option(
        1.0, "Repetition penalty", ge=MIN_PENALTY, le=10, advanced=True
    )
    """1: none. Each draft token is penalised by its own path."""
    stop: str = option("", "Stop strings", max_length=300, advanced=True)
    """Strings that end a response, separated by |"""
    chat: bool = option(True, "Chat template", advanced=True)
    """Applies the model's chat template, if it has one."""
    nodes: TreeSize = option(0, unit="nodes", advanced=True)
    lookup: bool = option(False, "Prompt lookup first")
    """Prompt-lookup decoding: draft by n-gram match in the context; fall back to the drafter."""
    precision: Precision = "auto"
