"""The config of a run that trains a drafter."""

from typing import Literal

from backend.drafters.config import DrafterConfig, TrainingConfig
from backend.options import option
from backend.text.prompts import BUILT_IN, SELF, STORIES
from jobs.fields.drafters import DRAFTER_FOLDER, DRAFTER_KIND
from jobs.fields.text import PromptConfig
from jobs.fields.types import CorpusName, ModelConfig, PromptSet
from jobs.kind import JobConfig

NAME = DRAFTER_KIND
DRAFTER = DRAFTER_FOLDER  # the stage that is the whole drafter, and the folder it is saved in


class DataConfig(PromptConfig):
    """What the drafter is trained on."""

    prompts: PromptSet = option("auto", examples=["auto", BUILT_IN, SELF, STORIES])
    """Prompts to generate training data from. auto: half built-in, half model-generated; fewer than
    256 are all built-in; stories for the toy. file:NAME.jsonl: your own; only the first turn is
    used."""
    data: Literal["answers", "text"] = option("answers", "Training data")
    """answers: responses the base model generates, the distribution the drafter has to predict.
    text: windows of a corpus."""
    answers: int = option(1024, "Sequences", ge=2, le=10**7, unit="sequences")
    """Responses, or windows of text."""
    answer_tokens: int = option(128, "Max response tokens", ge=8, le=32768, unit="tokens")
    """Maximum response length (exact length for corpus windows)."""
    heldout: int = option(48, "Held-out sequences", ge=1, le=10**5, unit="sequences", advanced=True)
    """Kept apart to measure head accuracy and to choose the tree."""
    training_text: CorpusName = option("auto", "Corpus", choices="evaluation_text", advanced=True)
    """Used only if the training data is text."""


class AmphistaJob(ModelConfig, DrafterConfig, DataConfig, TrainingConfig, JobConfig):
    """Base model, drafter architecture, training data and budget."""
