"""Evaluation job: quality, size and speed of a model, compared with its dense source model."""

from collections.abc import Mapping, Sequence

import torch

from backend.models.devices import device_memory
from backend.models.loading import LoadedModel
from backend.reporter import REPLAY
from backend.store import queries
from backend.text.slices import TextSlice
from jobs.evaluation.kind import (
    DENSE,
    LABELS,
    MODEL,
    EvaluationJob,
    memory_bytes,
    models_by_stage,
    size_and_speed,
    work,
)
from jobs.evaluation.quality import (
    Quality,
    Role,
    hidden_state_store,
    prompt_for,
    record_decoding,
    record_sizes,
)
from jobs.fields.models import ResolvedModel, resolve_model
from jobs.metrics import TOKENS_PER_SECOND
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_decoding, load_evaluation_text, load_whole
from jobs.runtime.progress import Phase, Phases


def run(config: EvaluationJob, context: JobContext) -> None:
    """Run an evaluation. Metrics recorded by an earlier attempt are not measured again."""
    device = prepare(config, context)
    specs = models_by_stage(config)
    resolved = {stage: resolve_model(spec) for stage, spec in specs.items()}
    facts = {stage: model.facts for stage, model in resolved.items()}
    first_spec = next(iter(specs.values()))
    context.record_environment(base=first_spec)  # Compare offers runs of the same base model
    text = load_evaluation_text(config, first_spec, context)
    phases = context.phases(work(config, facts[MODEL], specs))
    record_sizes(facts[MODEL], context)
    # both models are evaluated in the same precision
    available = device_memory(device)
    dtype = available.dtype(next(iter(facts.values())).dtype)
    streamed, _ = memory_bytes(config, facts[MODEL], len(specs), available.free, dtype)
    models: dict[str, LoadedModel] = {}
    for stage, spec in specs.items():
        context.log(f"Loading {spec} on {device}, {'block by block' if streamed else 'at once'}.")
        models[stage] = load_whole(
            resolved[stage], device, getattr(torch, dtype), context, streamed
        )
    measure(models, text, config, phases, context)
    if config.speed and not streamed:
        prompt = prompt_for(next(iter(models.values())))
        models.clear()
        measure_decoding(resolved, prompt, device, dtype, phases.phase("decode"), context)
    elif config.speed:
        context.log("Decoding is not timed: every token would read the model from disk.")
    context.outcome(kept_stage=MODEL)
    for sentence in size_and_speed(
        {(r.stage, r.metric): r for r in queries.results([context.run])}
    ):
        context.log(sentence)


def measure(
    models: Mapping[str, LoadedModel],
    text: TextSlice,
    config: EvaluationJob,
    phases: Phases,
    context: JobContext,
) -> None:
    """Measure the quality of every model on the same text."""
    has_reference = DENSE in models
    reference = next(iter(models.values()))
    quality = Quality(
        config,
        reference,
        text,
        context,
        batch=config.batch,
        labels=LABELS,
        new_store=hidden_state_store("auto", reference, text, context),
        divergence=has_reference,
        precision=config.evaluation_precision,
    )
    for stage, loaded in models.items():
        role: Role = "kept" if has_reference and stage != DENSE else "dense"
        quality.for_model(loaded).measure(stage, phases.phase(stage), role)


def measure_decoding(
    resolved: Mapping[str, ResolvedModel],
    prompt: Sequence[int],
    device: str,
    dtype: str,
    phase: Phase,
    context: JobContext,
) -> None:
    """Reload the models and measure their decoding speed, unless it is already recorded."""
    if context.has_result(MODEL, TOKENS_PER_SECOND):
        phase.progress(1, 1, REPLAY)
        return
    models = {
        stage: load_decoding(model, device, getattr(torch, dtype), context).model
        for stage, model in resolved.items()
    }
    max_context = min(model.facts.context for model in resolved.values())
    record_decoding(models, prompt, max_context, context, phase)
