"""Evaluation as a kind of job, and its findings in sentences: size and decoding of a saved model
beside its dense one. A speed-up within the noise of its measurement is not reported as one."""

from collections.abc import Collection, Mapping
from typing import Any

from backend.errors import ConfigError
from backend.metric_key import MetricKey
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.options import option
from backend.store import queries
from backend.store.queries import StoredResult
from backend.store.tables import Job
from jobs import metrics
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.fields.models import is_run, model_before, resolve_model
from jobs.fields.text import (
    EvaluationText,
    QualityConfig,
    check_evaluation_text,
    check_quality,
    context_length,
    ending_products,
    sampled_bytes,
)
from jobs.fields.types import DEFAULT_MODEL, ModelConfig, ModelSpec, absolute
from jobs.kind import JobConfig, Kind, Requirements
from jobs.wording import StageComparison, times

NAME = "evaluation"
DENSE, MODEL = "dense", "model"  # the two stages
LABELS = {DENSE: "Dense", MODEL: "Model"}
SAMPLED = metrics.GREEDY_AGREEMENT  # the figure that comes with texts
TIMED_TOKENS, REPEATS = 32, 5  # decoded at a time, and how often
MIN_GAIN, MIN_STANDARD_ERRORS = 0.05, 2.0  # below either, a speed-up is not reported as one

Rows = Mapping[tuple[str, MetricKey], StoredResult]  # (stage, metric) -> row


class EvaluationJob(ModelConfig, EvaluationText, QualityConfig, JobConfig):
    """Which model, its dense reference, and what is measured."""

    model: ModelSpec = option(DEFAULT_MODEL, "Run or model")
    """A run that saved a model, such as sds-0042; or a name from the list, a hub id, a folder."""
    dense: str = option("", "Dense model", max_length=300, choices="saved")
    """The reference. Empty: the model the run started from; a model that is not a run is then
    measured alone."""
    batch: int = option(4, "Batch size", ge=1, le=256, unit="windows", advanced=True)
    """Windows per forward pass. More are faster on a GPU and need more memory."""
    speed: bool = option(True, "Measure speed")
    """Time decoding with both models in turn."""


def measured_models(config: EvaluationJob) -> dict[str, str]:
    """Stage -> spec of the model measured at it, the dense one first if there is one. Raises
    ConfigError: the run is not there, or has saved no model."""
    spec, dense = config.model, absolute(config.dense)
    if is_run(spec):
        dense = dense or model_before(spec)
    return ({DENSE: dense} if dense else {}) | {MODEL: spec}


def size_and_speed(rows: Rows) -> list[str]:
    """The findings in sentences; empty before anything was measured."""
    return [text for text in (_size(rows), _decoding(rows)) if text]


def format_bytes(rows: Rows) -> dict[str, float]:
    sizes = {
        metric.series: row.value
        for (stage, metric), row in rows.items()
        if stage == MODEL and metric.family == metrics.LINEAR_BYTES
    }
    return dict(sorted(sizes.items(), key=lambda item: item[0] != DENSE))


def _size(rows: Rows) -> str:
    sizes = format_bytes(rows)
    dense = sizes.pop(DENSE, None)
    if dense is None:
        return ""
    smallest = min(sizes, key=sizes.__getitem__)
    part = sizes[smallest] / dense
    if part >= 1:
        return "Size: too few zeros for a sparse format; each would be larger than dense 16-bit."
    return (
        f"Size: as {smallest} the linear layers take {100 * part:.0f} % of dense 16-bit values. "
        "The saved file stores zeros as ordinary numbers and is not smaller."
    )


def _decoding(rows: Rows) -> str:
    keys = (
        (MODEL, metrics.TOKENS_PER_SECOND),
        (DENSE, metrics.TOKENS_PER_SECOND),
        (MODEL, metrics.SPEED_UP),
    )
    model, dense, up = (rows.get(key) for key in keys)
    if model is None or dense is None or up is None:
        return ""
    rates = f"{_rate(model)}, the dense model {_rate(dense)}"
    if abs(up.value - 1) < max(MIN_GAIN, MIN_STANDARD_ERRORS * (up.stderr or 0.0)):
        return f"Decoding: no speed-up here: {rates}."
    if up.value < 1:
        return f"Decoding: slower than the dense model here, {times(up.value)}: {rates}."
    return f"Decoding: {times(up.value)} the dense speed here: {rates}."


def _rate(row: StoredResult) -> str:
    """The median, and what the repeats lie between."""
    lowest, highest = row.details["lowest"], row.details["highest"]
    return f"{row.value:.3g} tokens/s ({lowest:.3g} to {highest:.3g})"


def evaluations(run: str) -> list[Job]:
    return [job for job in queries.jobs(kind=NAME) if job.config.get("model") == run]


def samples_of(run: str | int, stage: str = DENSE) -> list[dict[str, Any]]:
    """The samples a run has recorded at a stage: prompt, text and tokens of each."""
    for result in queries.results([run]):
        if (result.stage, result.metric) == (stage, SAMPLED):
            return list(result.details["samples"])
    return []


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
        title=model.title,
        work=work(config, model, facts),
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
            facts,
            dtype=dtype,
            copies=models,
            context=context,
            batch=config.batch,
            streamed=streamed,
        )
        return sizes | {"activations": states}

    tight = sum(needed(False).values()) > memory.STREAMING_THRESHOLD * available
    streamed = tight and not facts.support.stream
    return streamed, needed(streamed)


def work(config: EvaluationJob, facts: ModelFacts, stages: Collection[str]) -> list[PhaseWork]:
    """See `Requirements.work`."""
    context = context_length(config, facts)
    read = facts.weights_per_token * config.windows * context + ending_products(
        config, facts, config.windows, context
    )
    decoded = decoded_bytes(facts, TIMED_TOKENS * (1 + REPEATS)) * len(stages) * config.speed
    sampled = sampled_bytes(config, facts)
    return [
        *(PhaseWork(stage, read, "float32") for stage in stages),
        *(PhaseWork(stage, sampled, "memory") for stage in stages),
        PhaseWork("decode", decoded, "memory"),
    ]


def verdict(stages: StageComparison) -> str:
    if not {DENSE, MODEL} <= stages.perplexity.keys():
        return ""
    return f"Perplexity {stages.clause(MODEL, {DENSE: 'the dense one'}, 'is')}."


KIND = Kind(
    name=NAME,
    title="Evaluation",
    summary="Quality, size and speed of a saved model, beside the dense model it was made of.",
    config=EvaluationJob,
    requirements=requirements,
    run="jobs.evaluation.run:run",
    order=60,
    main_fields=("dense", "speed"),
    stages=LABELS,
    verdict=verdict,
    presets={
        "quick look": {"windows": 8, "context": 256, "sample_tokens": 24},
        "default": {},
        "long context": {"windows": 40, "context": 2048},
    },
)
