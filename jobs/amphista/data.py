"""The sequences a drafter is trained on: prompts the base model answers, or windows of a corpus."""

from __future__ import annotations

import random

from backend.decoding.target_model import TargetModel
from backend.drafters.data.hidden_state_cache import SequenceSources
from backend.drafters.data.prompts import PromptRequest, prompts_for
from backend.errors import ConfigError
from backend.models.loading import LoadedModel
from backend.text.corpora import WIKIPEDIA
from backend.text.prompt_ids import end_ids
from backend.text.prompts import BUILT_IN, has_pages
from backend.text.slices import calibration_slice
from jobs.amphista.config import AmphistaJob
from jobs.amphista.estimate import corpus_name, prompt_sets
from jobs.fields.prompts import prompt_facts
from jobs.runtime.context import JobContext
from jobs.runtime.loading import text_facts
from jobs.runtime.progress import Phases


def training_sources(
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
    )
