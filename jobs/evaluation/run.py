"""A saved model beside the dense one it was made of, as a job: quality, size and speed.

Works on a run of any kind that saved a model, and on any other model. What it measures stands in
`jobs.evaluation.quality` and `jobs.evaluation.acceleration`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from backend.errors import ConfigError, NotFoundError
from backend.models.facts import ModelFacts
from backend.models.memory import (
    COMFORT,
    activation_memory,
    memory_available,
    memory_parts,
    refuse_beyond,
    wait_on_disk,
)
from backend.models.sources.catalogue import inspect
from backend.settings import settings
from backend.store import queries
from backend.store.tables import Job
from jobs.evaluation.acceleration import (
    DENSE,
    MODEL,
    REPEATS,
    TOKENS,
    prompt_for,
    record_decoding,
    record_products,
    record_sizes,
    said,
)
from jobs.evaluation.quality import (
    DECODED,
    Quality,
    QualityConfig,
    Role,
    check_quality,
    quality_work,
    waiting,
)
from jobs.fields.model import ModelConfig, absolute
from jobs.fields.text import (
    EvaluationText,
    check_evaluation_text,
    context_length,
    load_evaluation,
)
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.duration import estimate_seconds

if TYPE_CHECKING:
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phases

NAME = "evaluation"
RUN = re.compile(r"[a-z][a-z0-9]*-\d+")
LABELS = {DENSE: "Dense", MODEL: "Model"}
PRODUCTS = 2e10  # operations that take about as long as timing the sparse products


class EvaluationJob(ModelConfig, EvaluationText, QualityConfig, JobConfig):
    """A model, what it is compared with, and what is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=300,
        title="Run or model",
        description="A run that saved a model, such as sds-0042; or a name from the list, a hub "
        "id, a folder.",
        json_schema_extra={"choices": "saved"},
    )
    dense: str = Field(
        "",
        max_length=300,
        title="Dense model",
        description="What it is compared with. Empty: the model the run began with; a model that "
        "is no run is then measured alone.",
        json_schema_extra={"choices": "model"},
    )
    batch: int = Field(
        4,
        ge=1,
        le=256,
        title="Windows per pass",
        description="More are faster on a GPU and take more memory.",
        json_schema_extra={"unit": "windows", "advanced": True},
    )
    speed: bool = Field(
        True,
        title="Measure speed",
        description="Decode with both models in turn, and time products with sparse matrices.",
    )


# before the work ----------------------------------------------------------------------------------


def subjects(config: EvaluationJob) -> dict[str, str]:
    """Stage -> spec of the model measured at it, the dense one first if there is one.

    Raises:
        ConfigRefused: the run is not there, or has saved no model.
    """
    spec, dense = config.model, absolute(config.dense)
    if RUN.fullmatch(spec):
        spec, began = saved_model(spec)
        dense = dense or began
    return ({DENSE: dense} if dense else {}) | {MODEL: spec}


def saved_model(run: str, field: str = "model") -> tuple[str, str]:
    """The folder a run saved its model in, and the model it began with."""
    try:
        job = queries.job(run)
        saved = [a.path for a in queries.artifacts(run) if a.kind == "model"]
    except NotFoundError as error:
        raise ConfigError(
            error.what, error.why, "Choose a run that saved a model.", field
        ) from error
    if not saved:
        raise ConfigError(
            f"{run} has saved no model.", f"It is {job.state}.",
            "Choose a run that succeeded, or wait for it.", field,
        )  # fmt: skip
    return str(settings().artifacts / saved[-1]), str(job.config.get("model", ""))


def evaluations(run: str) -> list[Job]:
    """The evaluations of a run, the newest first."""
    return [job for job in queries.jobs(kind=NAME) if job.config.get("model") == run]


def check(config: EvaluationJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    facts = {stage: inspect(spec) for stage, spec in subjects(config).items()}
    model = facts[MODEL]
    _refuse_unlike(model, facts.get(DENSE, model))
    check_evaluation_text(config, next(iter(facts.values())))
    warnings = check_quality(config)
    streamed, needed = memory(config, model, len(facts), memory_available())
    if streamed:
        warnings += ("The model does not fit into memory at once: no text is decoded with it.",)
    refuse_beyond(needed, memory_available(), model.title)
    work = sum(parts(config, model, [*facts]).values())
    seconds, basis = estimate_seconds(NAME, config.model, work)
    asked = bool(config.task_names)
    return Estimate(seconds, sum(needed.values()), work, basis, warnings, open_ended=asked)


def _refuse_unlike(model: ModelFacts, dense: ModelFacts) -> None:
    if (model.linears, model.vocabulary) != (dense.linears, dense.vocabulary):
        raise ConfigError(
            f"{model.title} was not made of {dense.title}.",
            "Their layers or vocabularies are not of the same shape.",
            "Choose the model it was made of.",
            "dense",
        )


def memory(
    config: EvaluationJob, facts: ModelFacts, models: int, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether models are read block by block, and the bytes needed then, by what they are for.

    Both models are held at the same time, to be timed in turn.
    """
    context = context_length(config, facts)
    states = activation_memory(facts, config.windows, context, dtype)
    if wait_on_disk("auto", states, available):
        states = activation_memory(facts, config.batch, context, dtype)

    def needed(streamed: bool) -> dict[str, int]:
        sizes = memory_parts(
            facts, dtype=dtype, copies=models, context=context,
            batch=config.batch, streamed=streamed,
        )  # fmt: skip
        return sizes | {"activations": states}

    streamed = sum(needed(False).values()) > COMFORT * available
    return streamed, needed(streamed)


def parts(config: EvaluationJob, facts: ModelFacts, stages: list[str]) -> dict[str, float]:
    """Floating-point operations of each part of the job: the basis of estimate and progress."""
    weights = facts.weights_per_token
    tokens = config.windows * context_length(config, facts)
    once = 2.0 * weights * tokens + quality_work(config, facts)
    found = dict.fromkeys(stages, once)
    if config.speed:
        found["decode"] = 2.0 * weights * DECODED * TOKENS * (1 + REPEATS) * len(stages)
        found["products"] = PRODUCTS
    return found


# the work -----------------------------------------------------------------------------------------


def run(config: EvaluationJob, context: JobContext) -> None:
    """The whole job; a figure that an earlier attempt has recorded is not measured again."""
    import torch

    from backend.models.loading import free_memory, load
    from jobs.runtime.environment import prepare
    from jobs.runtime.progress import Phases

    device = prepare(config, context)
    specs = subjects(config)
    facts = {stage: inspect(spec) for stage, spec in specs.items()}
    context.environment(base=next(iter(specs.values())))  # what its figures are compared under
    work = parts(config, facts[MODEL], [*specs])
    phases = Phases(context, work)
    record_sizes(facts[MODEL], context)
    # One precision for both: a run on the CPU saves float32 even of a 16-bit model.
    dtype = "float32" if device == "cpu" else next(iter(facts.values())).dtype
    streamed, _ = memory(config, facts[MODEL], len(specs), free_memory(device), dtype)
    models: dict[str, LoadedModel] = {}
    for stage, spec in specs.items():
        context.log(f"Loading {spec} on {device}, {'block by block' if streamed else 'at once'}.")
        models[stage] = load(spec, device, getattr(torch, dtype), context.log, streamed)
    measure(models, config, phases, context)
    if config.speed:
        measure_speed(models, device, streamed, phases, context)
    context.result("run", "kept", 1.0, kept=MODEL)
    context.result("run", "work", sum(work.values()))
    for sentence in said({(r.stage, r.metric): r for r in queries.results([context.run])}):
        context.log(sentence)


def measure(
    models: Mapping[str, LoadedModel], config: EvaluationJob, phases: Phases, context: JobContext
) -> None:
    """Measures the quality of each model on the same text."""
    alone = DENSE not in models
    if alone:
        config = config.model_copy(update={"divergence": False})
    first = next(iter(models.values()))
    text = load_evaluation(config, first, context)
    quality = Quality(
        config, first, text, context, batch=config.batch, labels=LABELS,
        new=waiting("auto", first.facts, text, context),
    )  # fmt: skip
    for stage, loaded in models.items():
        role: Role = "dense" if alone or stage == DENSE else "kept"
        quality.of(loaded).measure(stage, phases.phase(stage), role)


def measure_speed(
    models: Mapping[str, LoadedModel],
    device: str,
    streamed: bool,
    phases: Phases,
    context: JobContext,
) -> None:
    """Measures how fast the models decode, and what products without zeros take."""
    if streamed:
        context.log("Decoding is not timed: every token would read the model from disk.")
    else:
        decoded = {stage: loaded.model for stage, loaded in models.items()}
        prompt = prompt_for(next(iter(models.values())))
        record_decoding(decoded, prompt, context, phases.phase("decode"))
    zeros = {r.metric: r.value for r in queries.results([context.run]) if r.stage == MODEL}
    phase = phases.phase("products")
    record_products(models[MODEL].facts, zeros["zero_share"], device, context, phase)


def verdict(perplexity: Mapping[str, float]) -> str:
    """In words, what compression cost. `perplexity`: stage -> value."""
    dense, model = perplexity.get(DENSE), perplexity.get(MODEL)
    if not dense or model is None:
        return ""
    change = 100 * (model / dense - 1)
    return f"Perplexity is {abs(change):.1f} % {'below' if change < 0 else 'above'} the dense one."


KINDS = (
    Kind(
        name=NAME,
        title="Evaluation",
        summary="How good, how large and how fast a saved model is, beside the dense model it was "
        "made of.",
        config=EvaluationJob,
        check=check,
        run=run,
        stages=LABELS,
        verdict=verdict,
        presets={
            "quick look": {"windows": 8, "context": 256, "sample_tokens": 24},
            "default": {},
            "long context": {"windows": 40, "context": 2048},
        },
    ),
)
