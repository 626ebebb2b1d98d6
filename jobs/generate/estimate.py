"""What a generation run needs before it starts: FLOPs, memory, and what is refused."""

from collections.abc import Sequence

from backend.errors import ModelError, for_field
from backend.models.facts import ModelFacts
from backend.models.memory import RUNTIME, weight_memory
from jobs.fields.base_model import decodable_model
from jobs.fields.saved_models import saved_config
from jobs.fields.sides import GenerationSide, read_sides
from jobs.generate.config import GenerateJob
from jobs.kind import Requirements
from jobs.limits import require_context
from jobs.runtime.duration import DECODE_COST

MODEL_MARGIN = 1.3  # memory of a drafter and its cache beside the weights


def requirements(config: GenerateJob) -> Requirements:
    sides = read_sides(config.sides)
    models = [side_facts(side, config) for side in sides]
    shortest = min(models, key=lambda facts: facts.context)
    require_context(config.max_new_tokens, shortest, "Responses", "max_new_tokens", prompt=True)
    largest = max(models, key=weight_memory)
    return Requirements(
        model=config.sides,
        title=largest.title,
        flops=flops_by_phase(config, models),
        memory={"runtime": RUNTIME, "model": int(MODEL_MARGIN * weight_memory(largest))},
    )


def side_facts(side: GenerationSide, config: GenerateJob) -> ModelFacts:
    """The facts of the model that decodes for a side, whose drafter is there; names `sides`."""
    if side.drafter:
        saved_config(side.drafter, side.name, "sides")
    with for_field("sides", ModelError):
        return decodable_model(side.model, config.precision, "sides").facts


def flops_by_phase(config: GenerateJob, models: Sequence[ModelFacts]) -> dict[str, float]:
    parameters = sum(facts.parameters for facts in models)
    return {"generate": 2.0 * DECODE_COST * parameters * config.max_new_tokens}
