"""The texts a job reads: fields shared by every kind that calibrates and evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.text.corpora import require_corpus

if TYPE_CHECKING:
    from backend.models.loading import LoadedModel
    from backend.text.slices import TextSlice
    from jobs.runtime.context import JobContext

DEFAULT_CONTEXT = 512
SHORTEST = 16


class EvaluationText(BaseModel):
    """What a model is measured on."""

    context: int = Field(
        0,
        ge=0,
        le=131072,
        title="Context length",
        description="Of each segment and window. 0: 512, or all the model reads if that is less.",
        json_schema_extra={"unit": "tokens"},
    )
    evaluation_text: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Evaluation text",
        description="Perplexity is measured on it. auto: the corpus that suits the model.",
    )
    windows: int = Field(
        16,
        ge=1,
        le=4096,
        title="Evaluation windows",
        description="Windows spread evenly over the text; they never overlap.",
        json_schema_extra={"unit": "windows"},
    )


class TextConfig(EvaluationText):
    """Calibration and evaluation text. The two never share a passage."""

    calibration_text: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Calibration text",
        description="auto: the corpus that suits the model. self: sampled from the dense model.",
    )
    segments: int = Field(
        32,
        ge=1,
        le=4096,
        title="Calibration segments",
        description="Random windows of the calibration text.",
        json_schema_extra={"unit": "segments"},
    )


def context_length(config: EvaluationText, facts: ModelFacts) -> int:
    """Tokens of a segment and of a window."""
    return config.context or min(DEFAULT_CONTEXT, facts.context)


def corpus_names(config: TextConfig, suits: str) -> tuple[str, str]:
    """The corpora meant: auto is the one that suits the model."""
    calibration = config.calibration_text
    return (suits if calibration == "auto" else calibration), evaluation_name(config, suits)


def evaluation_name(config: EvaluationText, suits: str) -> str:
    """The corpus a model is measured on: auto is the one that suits it."""
    return suits if config.evaluation_text == "auto" else config.evaluation_text


def check_evaluation_text(config: EvaluationText, facts: ModelFacts) -> None:
    """Refuses a corpus that is not there and a context the model cannot read, without torch."""
    context = context_length(config, facts)
    if context > facts.context or context < SHORTEST:
        raise ConfigError(
            f"A context of {context} tokens does not fit.",
            f"{facts.title} reads {SHORTEST} to {facts.context}.",
            "Choose a length between, or 0.",
            "context",
        )
    require_corpus(evaluation_name(config, facts.default_text), "evaluation_text")


def check_text(config: TextConfig, facts: ModelFacts) -> tuple[str, ...]:
    """Refuses corpora that are not there and contexts the model cannot read, without torch.

    Returns:
        Warnings that do not forbid the run.
    """
    check_evaluation_text(config, facts)
    require_corpus(corpus_names(config, facts.default_text)[0], "calibration_text")
    tokens = config.segments * context_length(config, facts)
    widest = max(x.columns for x in facts.linears)
    if tokens < 2 * widest:
        return (
            f"{tokens} calibration tokens are few for layers with {widest} inputs: "
            f"{2 * widest} or more give a better result.",
        )
    return ()


def load_texts(
    config: TextConfig, loaded: LoadedModel, seed: int, context: JobContext
) -> tuple[TextSlice, TextSlice]:
    """The calibration and the evaluation slice; records both, and that they share nothing."""
    from backend.text.slices import (
        calibration_slice,
        check_apart,
        evaluation_slice,
        sample_slice,
    )

    calibration_name, evaluation_name = corpus_names(config, loaded.facts.default_text)
    length = context_length(config, loaded.facts)
    shared = calibration_name == evaluation_name
    evaluation = evaluation_slice(
        evaluation_name, loaded.tokenizer, config.windows, length, shared=shared
    )
    wanted = (config.segments, length, seed)
    if calibration_name == "self":
        context.log("Sampling the calibration text from the dense model.")
        calibration = sample_slice(loaded.model, loaded.tokenizer, *wanted, context)
    else:
        calibration = calibration_slice(calibration_name, loaded.tokenizer, *wanted, shared=shared)
    check_apart(calibration, evaluation)
    both = {"calibration": text_facts(calibration), "evaluation": text_facts(evaluation)}
    context.environment(text=both)
    return calibration, evaluation


def load_evaluation(config: EvaluationText, loaded: LoadedModel, context: JobContext) -> TextSlice:
    """The evaluation slice alone, apart from whatever a run calibrates on; records it."""
    from backend.text.slices import evaluation_slice

    name = evaluation_name(config, loaded.facts.default_text)
    length = context_length(config, loaded.facts)
    found = evaluation_slice(name, loaded.tokenizer, config.windows, length)
    context.environment(text={"evaluation": text_facts(found)})
    return found


def text_facts(text: TextSlice) -> dict[str, Any]:
    """What identifies a slice: enough to cut the same one again."""
    return {
        "corpus": text.corpus,
        "sha256": text.sha256,
        "seed": text.seed,
        "context": text.context,
        "windows": int(text.input_ids.shape[0]),
        "preprocessing": text.preprocessing,
    }
