"""What an evaluation needs before it starts: FLOPs, memory, and what is refused."""

from backend.errors import ConfigError
from backend.models import memory
from backend.models.facts import ModelFacts
from jobs.evaluation.config import DENSE, MODEL, EvaluationJob, measured_models
from jobs.evaluation.report import REPEATS, TIMED_TOKENS
from jobs.fields.base_model import resolve_model
from jobs.fields.quality import DECODED_TOKEN_COST, check_quality, ending_flops, sample_flops
from jobs.fields.text import check_evaluation_text, context_length
from jobs.kind import Requirements


def requirements(config: EvaluationJob) -> Requirements:
    facts = {
        stage: resolve_model(spec, "model" if stage == MODEL else "dense").facts
        for stage, spec in measured_models(config).items()
    }
    model = facts[MODEL]
    dense = facts.get(DENSE, model)
    if (model.linears, model.vocabulary) != (dense.linears, dense.vocabulary):
        raise ConfigError(
            f"{model.title} was not made of {dense.title}.",
            "Their layers or vocabularies are not of the same shape.",
            "Choose the model it was made of.",
            "dense",
        )
    check_evaluation_text(config, next(iter(facts.values())))
    warnings = check_quality(config, context_length(config, model))
    streamed, needed = memory_bytes(config, model, len(facts), memory.memory_available())
    if streamed:
        warnings += ("The model does not fit into memory: no text is generated with it.",)
    return Requirements(
        model=config.model,
        title=model.title,
        flops=flops_by_phase(config, model, [*facts]),
        memory=needed,
        warnings=warnings,
        open_ended=bool(config.harness_tasks),
    )


def memory_bytes(
    config: EvaluationJob, facts: ModelFacts, models: int, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether models are read block by block, and then purpose -> bytes at the peak. Both models
    are held at the same time, to be timed in turn."""
    context = context_length(config, facts)
    states = memory.activation_memory(facts, config.windows, context, dtype)
    if memory.wait_on_disk("auto", states, available):
        states = memory.activation_memory(facts, config.batch, context, dtype)

    def needed(streamed: bool) -> dict[str, int]:
        sizes = memory.memory_parts(
            facts, dtype=dtype, copies=models, context=context,
            batch=config.batch, streamed=streamed,
        )  # fmt: skip
        return sizes | {"activations": states}

    tight = sum(needed(False).values()) > memory.STREAMING_THRESHOLD * available
    streamed = tight and not facts.support.stream
    return streamed, needed(streamed)


def flops_by_phase(config: EvaluationJob, facts: ModelFacts, stages: list[str]) -> dict[str, float]:
    weights = facts.weights_per_token
    context = context_length(config, facts)
    once = 2.0 * weights * config.windows * context + sample_flops(config, facts)
    once += ending_flops(config, facts, config.windows, context)
    phases = dict.fromkeys(stages, once)
    if config.speed:
        phases["decode"] = (
            2.0 * weights * DECODED_TOKEN_COST * TIMED_TOKENS * (1 + REPEATS) * len(stages)
        )
    return phases
