"""What is measured besides perplexity: fields shared by the kinds that evaluate a model."""

import re

from pydantic import field_validator

from backend.errors import ConfigError
from backend.evaluation.tasks import CHOICES, MIN_CONTEXT, PART, question_count, require_harness
from backend.models.facts import ModelFacts
from backend.models.layer_names import read_names
from backend.options import Options, option
from jobs.estimates import decoded_bytes

SAMPLE_PROMPTS = 4
TASK_NAME = re.compile(r"[\w.\-]{1,100}")
MAX_TASKS = 20
ENDINGS = "endings"  # the task that is made from the evaluation text


class QualityConfig(Options):
    """What is measured besides perplexity."""

    sample_tokens: int = option(48, "Sample length", ge=0, le=512, unit="tokens", advanced=True)
    """Greedy samples of the dense and the kept model, side by side. 0: none."""
    tasks: str = option("", "Tasks", max_length=400, advanced=True)
    """endings: which of four endings continues a passage of the evaluation text? Other names are
    tasks of lm-evaluation-harness, as in piqa, arc_easy, and need the extra slimscope[tasks]."""
    task_limit: int = option(
        0, "Questions per task", ge=0, le=1_000_000, unit="questions", advanced=True
    )
    """The first ones of each task. 0: all."""

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
    """Refuse what cannot be measured on windows of `context` tokens; else warnings."""
    if config.asks_endings and context < MIN_CONTEXT:
        raise ConfigError(
            f"A context of {context} tokens is too short to choose endings from.",
            f"A window has to hold {CHOICES} passages with their endings, {PART} tokens each.",
            f"Raise the context length to {MIN_CONTEXT} or more, or leave out endings.",
            "tasks",
        )
    if not config.harness_tasks:
        return ()
    require_harness()
    return ("The estimate leaves out the zero-shot tasks.",)


def sampled_bytes(config: QualityConfig, facts: ModelFacts) -> float:
    """Bytes read to sample the texts of one model."""
    return decoded_bytes(facts, SAMPLE_PROMPTS * config.sample_tokens)


def ending_products(config: QualityConfig, facts: ModelFacts, windows: int, context: int) -> float:
    """Products of choosing endings with one model."""
    asked = question_count(windows, context, config.task_limit) if config.asks_endings else 0
    return float(facts.weights_per_token * asked * CHOICES * PART)
