"""Config fields for texts, prompts and measurements besides perplexity, shared by the kinds that
calibrate, evaluate or decode."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from backend.errors import ConfigError, DatasetError, for_field
from backend.evaluation.tasks import CHOICES, QUESTION_TOKENS, question_count, require_harness
from backend.evaluation.tasks import MIN_CONTEXT as ENDINGS_CONTEXT
from backend.models.facts import ModelFacts
from backend.models.layer_names import read_names
from backend.models.sources.catalog import require_loadable
from backend.options import Options, option
from backend.text.corpora import require_corpus, require_length
from backend.text.prompts import BUILT_IN, STORIES
from jobs.estimates import decoded_bytes
from jobs.fields.types import CorpusName, PromptSet

MIN_CONTEXT = 16
MIN_HELDOUT = 8  # windows; with fewer, the confidence intervals of stages always overlap
STAGE_HELDOUT = 16  # windows that decide a stage, unless there are few calibration segments
SAMPLE_PROMPTS = 4
TASK_NAME = re.compile(r"[\w.\-]{1,100}")
MAX_TASKS = 20
ENDINGS = "endings"  # the task generated from the evaluation text


class ContextLength(Options):
    """Length of segments and windows of text."""

    context: int = option(0, "Context length", ge=0, le=131072, unit="tokens")
    """Length of each segment and window. 0: 512, or the maximum of the model if less."""


class EvaluationText(ContextLength):
    """Text a model is evaluated on."""

    evaluation_text: CorpusName = option("auto", "Evaluation text")
    """Text for perplexity. auto: the default corpus of the model."""
    windows: int = option(16, "Evaluation windows", ge=1, le=4096, unit="windows")
    """Number of non-overlapping windows, spread evenly over the text."""
    evaluation_precision: Literal["auto", "float32"] = option(
        "auto", "Evaluation precision", advanced=True
    )
    """auto: bfloat16 in the native decoder if it supports the model and is faster on this machine
    than PyTorch; otherwise like float32. Applies to all stages; the log gives the choice and its
    reason. float32: in PyTorch, on a GPU in the precision of the model."""


class CalibrationText(ContextLength):
    """Text a method learns from."""

    calibration_text: CorpusName = option("auto", "Calibration text")
    """auto: the default corpus of the model. self: text sampled from the dense model."""
    segments: int = option(32, "Calibration segments", ge=1, le=4096, unit="segments")
    """Number of random segments of the calibration text."""
    holdout: float = option(
        0.125,
        "Held-out share",
        ge=0,
        le=0.5,
        advanced=True,
        description="Extra windows of the calibration text that decide which stage is kept, as a "
        f"share of the calibration segments (at least {STAGE_HELDOUT}, or half of the segments "
        f"but {MIN_HELDOUT}). 0: none; the last stage is kept.",
    )
    least_heldout: ClassVar[int] = STAGE_HELDOUT

    @property
    def heldout_windows(self) -> int:
        """Number of held-out windows."""
        if not self.holdout:
            return 0
        least = max(MIN_HELDOUT, min(self.least_heldout, self.segments // 2))
        return max(least, round(self.holdout * self.segments))


class TextConfig(CalibrationText, EvaluationText):
    """Calibration and evaluation text. The two never share a passage."""


def context_length(config: ContextLength, facts: ModelFacts) -> int:
    """Return the number of tokens per segment and window."""
    return config.context or min(512, facts.context)


def corpus_names(config: TextConfig, default: str) -> tuple[str, str]:
    """Return the names of the calibration and the evaluation corpus; `default` replaces auto."""
    calibration = config.calibration_text
    return (default if calibration == "auto" else calibration), evaluation_name(config, default)


def evaluation_name(config: EvaluationText, default: str) -> str:
    """Return the name of the evaluation corpus; `default` replaces auto."""
    return default if config.evaluation_text == "auto" else config.evaluation_text


def check_evaluation_text(config: EvaluationText, facts: ModelFacts) -> None:
    """Raise an error for a missing corpus, an unsupported context length, or a model without a
    tokenizer."""
    check_context(config, facts)
    name = evaluation_name(config, facts.default_text)
    require_corpus(name, "evaluation_text")
    require_length(name, config.windows * context_length(config, facts), "evaluation_text")


def check_context(config: ContextLength, facts: ModelFacts) -> None:
    """Raise an error for an unsupported context length or a model without a tokenizer."""
    require_loadable(facts.spec, facts.vocabulary)
    context = context_length(config, facts)
    if context > facts.context or context < MIN_CONTEXT:
        raise ConfigError(
            f"A context of {context} tokens does not fit.",
            f"{facts.title} supports {MIN_CONTEXT} to {facts.context} tokens.",
            "Choose a length in this range, or 0.",
            "context",
        )


def check_text(config: TextConfig, facts: ModelFacts) -> tuple[str, ...]:
    """Raise an error for missing corpora or an unsupported context length. Return warnings."""
    check_evaluation_text(config, facts)
    calibration, evaluation = corpus_names(config, facts.default_text)
    require_corpus(calibration, "calibration_text")
    windows = config.segments + config.heldout_windows
    windows += config.windows if calibration == evaluation else 0
    length = context_length(config, facts)
    require_length(calibration, windows * length, "calibration_text")
    return few_tokens(config, facts)


def few_tokens(config: CalibrationText, facts: ModelFacts) -> tuple[str, ...]:
    """Warning if the calibration tokens are fewer than twice the widest input of a layer."""
    tokens = config.segments * context_length(config, facts)
    widest = max(x.columns for x in facts.linears)
    if tokens >= 2 * widest:
        return ()
    return (
        f"{tokens} calibration tokens are few for layers with {widest} inputs. "
        f"Use {2 * widest} or more for a better result.",
    )


def require_text(name: str, use: str, field: str) -> None:
    """Raise `DatasetError` for `field` if a corpus is not available for `use`."""
    with for_field(field, DatasetError):
        require_corpus(name, use)


class PromptConfig(Options):
    """Prompt set of a job."""

    prompts: PromptSet = option("auto", examples=["auto", BUILT_IN, STORIES])
    """auto: the built-in set for the model. file:NAME.jsonl: a file of yours, such as MT-Bench or
    Spec-Bench; only first turns are used."""


def default_prompts(facts: ModelFacts) -> str:
    """Return the name of the default prompt set of the model."""
    return STORIES if facts.default_text == STORIES else BUILT_IN


def prompt_set(config: PromptConfig, facts: ModelFacts) -> str:
    """Return the name of the prompt set; auto is the default of the model."""
    return default_prompts(facts) if config.prompts == "auto" else config.prompts


def prompt_facts(name: str, token_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the facts that identify a list of prompts: name of the set, count and sha256."""
    digest = hashlib.sha256(json.dumps([list(ids) for ids in token_ids]).encode())
    return {"corpus": name, "sha256": digest.hexdigest(), "count": len(token_ids)}


class QualityConfig(Options):
    """Measurements besides perplexity."""

    sample_tokens: int = option(48, "Sample length", ge=0, le=512, unit="tokens", advanced=True)
    """Length of greedy samples of the dense and the kept model. 0: none."""
    tasks: str = option("", "Tasks", max_length=400, advanced=True)
    """endings: choose the right one of four endings for passages of the evaluation text. Other
    names, such as piqa or arc_easy, are tasks of lm-evaluation-harness; they need the extra
    slimscope[tasks]."""
    task_limit: int = option(
        0, "Questions per task", ge=0, le=1_000_000, unit="questions", advanced=True
    )
    """Maximum number of questions per task, from the first. 0: all."""

    @field_validator("tasks")
    @classmethod
    def _names(cls, text: str) -> str:
        names = [ENDINGS if name.lower() == ENDINGS else name for name in read_names(text)]
        if len(names) > MAX_TASKS or not all(TASK_NAME.fullmatch(name) for name in names):
            raise ValueError(f"At most {MAX_TASKS} task names, separated by commas")
        return ", ".join(dict.fromkeys(names))

    @property
    def harness_tasks(self) -> list[str]:
        return [name for name in self._names_of_tasks if name != ENDINGS]

    @property
    def asks_endings(self) -> bool:
        return ENDINGS in self._names_of_tasks

    @property
    def _names_of_tasks(self) -> list[str]:
        return self.tasks.split(", ") if self.tasks else []


def check_quality(config: QualityConfig, context: int) -> tuple[str, ...]:
    """Raise an error if a task cannot be measured on windows of `context` tokens. Return
    warnings."""
    if config.asks_endings and context < ENDINGS_CONTEXT:
        raise ConfigError(
            f"A context of {context} tokens is too short for the task endings.",
            f"A window has to hold {CHOICES} passages of {QUESTION_TOKENS} tokens with endings.",
            f"Raise the context length to {ENDINGS_CONTEXT} or more, or leave out endings.",
            "tasks",
        )
    if not config.harness_tasks:
        return ()
    require_harness()
    return ("The estimate does not include the zero-shot tasks.",)


def sampled_bytes(config: QualityConfig, facts: ModelFacts) -> float:
    """Return the bytes read to generate the samples of one model."""
    return decoded_bytes(facts, SAMPLE_PROMPTS * config.sample_tokens)


def ending_products(config: QualityConfig, facts: ModelFacts, windows: int, context: int) -> float:
    """Return the products for the task endings with one model."""
    questions = question_count(windows, context, config.task_limit) if config.asks_endings else 0
    return float(facts.weights_per_token * questions * CHOICES * QUESTION_TOKENS)
