"""What a generation run needs before it starts: FLOPs, memory, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from backend.errors import ConfigError, SlimscopeError, for_field
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, weight_memory
from backend.store.tables import Job
from jobs.fields.base_model import require_decoder, require_precision, resolve_model
from jobs.fields.saved_models import saved_config
from jobs.generate.config import GenerateJob, GenerationSide, read_sides
from jobs.generate.conversation import require_chain, turns
from jobs.kind import Requirements
from jobs.limits import require_context
from jobs.runtime.duration import DECODE_COST

MODEL_MARGIN = 1.3  # memory of a drafter and its cache beside the weights


def requirements(config: GenerateJob) -> Requirements:
    sides = read_sides(config.sides)
    before = require_chain(config.follows, [side.name for side in sides])
    models = [side_facts(side, config) for side in sides]
    shortest = min(models, key=lambda facts: facts.context)
    require_context(config.max_new_tokens, shortest, "Responses", "max_new_tokens", prompt=True)
    largest = max(models, key=weight_memory)
    return Requirements(
        model=config.sides,
        title=largest.title,
        flops=flops_by_phase(config, models),
        memory={"runtime": RUNTIME, "model": int(MODEL_MARGIN * weight_memory(largest))},
        letters=len(config.system) + len(config.prompt) + _letters(before, len(sides)),
        tokens=config.max_new_tokens,
    )


def _letters(before: Sequence[Job], sides: int) -> int:
    """Characters of the longest history of a side."""
    histories = (turns(before, side) for side in range(1, sides + 1))
    return max(sum(len(turn.prompt) + len(turn.answer) for turn in each) for each in histories)


def side_facts(side: GenerationSide, config: GenerateJob) -> ModelFacts:
    """The facts of the model that decodes for one side, whose drafter is complete; errors name
    `sides`."""
    if side.drafter:
        saved_config(side.drafter, side.name, "sides")
    try:
        base = resolve_model(side.model, "sides")
        require_decoder(base, "sides")
        require_precision(base, config.precision)
    except ConfigError:
        raise
    except SlimscopeError as error:
        raise for_field(error, "sides") from error
    return base.facts


def flops_by_phase(config: GenerateJob, models: Sequence[ModelFacts]) -> dict[str, float]:
    parameters = sum(facts.parameters for facts in models)
    return {"generate": 2.0 * DECODE_COST * parameters * config.max_new_tokens}
