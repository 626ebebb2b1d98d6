"""What a drafter learns from: the fields that choose it, and the sequences they come to."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from backend.errors import ConfigError
from backend.methods.amphista.config import ADVANCED, Temperature
from backend.text.corpora import WIKIPEDIA
from backend.text.prompts import BUILT_IN, SELF, STORIES
from jobs.amphista.estimate import corpus_name, prompt_sets
from jobs.fields.prompts import PromptConfig, prompt_facts
from jobs.fields.text import text_facts

if TYPE_CHECKING:
    from backend.methods.amphista.data.hidden_state_cache import SequenceSources
    from backend.methods.amphista.target_model import TargetModel
    from backend.models.loading import LoadedModel
    from jobs.amphista.run import AmphistaJob
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phases


class DataConfig(PromptConfig):
    """What the drafter learns from."""

    prompts: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Prompts",
        description="What the base answers. auto: half built-in, half self-written, for the model "
        "has its own idea of what people ask; stories for the toy. file:NAME.jsonl: your own; of "
        "several turns the first is asked.",
        examples=["auto", BUILT_IN, SELF, STORIES],
    )
    data: Literal["answers", "text"] = Field(
        "answers",
        title="Training data",
        description="answers: the base answers the prompts, so the drafter learns what it will be "
        "asked to guess. text: windows of a corpus.",
    )
    answers: int = Field(
        1024,
        ge=2,
        le=10**7,
        title="Sequences",
        description="Answers, or windows of text.",
        json_schema_extra={"unit": "sequences"},
    )
    answer_tokens: int = Field(
        128,
        ge=8,
        le=32768,
        title="Tokens of an answer",
        description="At most; of a window exactly.",
        json_schema_extra={"unit": "tokens"},
    )
    temperature: Temperature = Field(
        0.0,
        ge=0,
        le=5,
        title="Temperature of the answers",
        description="0: greedy. Answers that are held out are greedy always.",
        json_schema_extra=ADVANCED,
    )
    heldout: int = Field(
        48,
        ge=1,
        le=10**5,
        title="Held-out sequences",
        description="Kept apart to judge the heads and to grow the tree.",
        json_schema_extra={"unit": "sequences", **ADVANCED},
    )
    text: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Corpus",
        description="Only for training data of the kind text.",
        json_schema_extra={"choices": "evaluation_text", **ADVANCED},
    )


def sources_of(
    config: AmphistaJob,
    loaded: LoadedModel,
    target: TargetModel,
    context: JobContext,
    phases: Phases,
) -> SequenceSources:
    """Prompts or windows, as token ids."""
    if config.data == "text":
        return _windows(config, loaded, context)
    return _prompts(config, loaded, target, context, phases)


def _windows(config: AmphistaJob, loaded: LoadedModel, context: JobContext) -> SequenceSources:
    from backend.methods.amphista.data.hidden_state_cache import SequenceSources
    from backend.text.slices import calibration_slice

    name = corpus_name(config, loaded.facts)
    wanted = (config.answers, config.answer_tokens, config.seed)
    text = calibration_slice(name, loaded.tokenizer, *wanted, shared=True)
    context.environment(text={"training": text_facts(text)})
    rows = text.input_ids.tolist()
    random.Random(config.seed).shuffle(rows)
    return SequenceSources(rows[config.heldout :], rows[: config.heldout], limit=0)


def _prompts(
    config: AmphistaJob,
    loaded: LoadedModel,
    target: TargetModel,
    context: JobContext,
    phases: Phases,
) -> SequenceSources:
    from backend.methods.amphista.data.hidden_state_cache import SequenceSources
    from backend.methods.amphista.data.prompts import PromptRequest, prompts_for
    from backend.text.prompts import end_ids, has_pages

    sets, limit = prompt_sets(config, loaded.facts), config.answer_tokens
    wanted = PromptRequest(sets, config.answers, config.heldout, limit, config.seed)
    learnt, heldout = prompts_for(
        target, loaded.tokenizer, wanted, context.checkpoints, phases.phase("ask")
    )
    lacking, field = ("to learn from", "prompts") if not learnt else ("to judge by", "heldout")
    if not learnt or not heldout:
        raise ConfigError(
            f"{' and '.join(sets)}: no prompt {lacking} is left.",
            f"{len(learnt) + len(heldout)} prompts leave room for answers of {limit} tokens.",
            "Choose other prompts, shorter answers, or another share to hold out.",
            field,
        )
    facts = prompt_facts(" and ".join(sets), learnt + heldout)
    if BUILT_IN in sets:
        facts["passages"] = WIKIPEDIA if has_pages() else "built-in notices"
        context.log(f"Prompts ask about passages of: {facts['passages']}.")
    context.environment(text={"prompts": facts})
    return SequenceSources(
        learnt,
        heldout,
        limit=limit,
        ends=end_ids(loaded.tokenizer, loaded.model.generation_config),
        temperature=config.temperature,
        seed=config.seed,
    )
