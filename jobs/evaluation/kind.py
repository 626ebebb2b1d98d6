"""The kind `evaluation`: config and requirements, and a summary in words of size and decoding speed
compared to the dense model. A speed-up within the measurement noise is not reported as one."""

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
from jobs.fields.models import is_run, resolve_model, source_model
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
from jobs.limits import run_memory
from jobs.wording import StageComparison, times

NAME = "evaluation"
DENSE, MODEL = "dense", "model"  # the two stages
LABELS = {DENSE: "Dense", MODEL: "Model"}
SAMPLED = metrics.GREEDY_AGREEMENT  # the metric that stores sampled texts
TIMED_TOKENS, REPEATS = 32, 5  # tokens per timing, and number of timings
MIN_GAIN, MIN_STANDARD_ERRORS = 0.05, 2.0  # smaller speed-ups are not reported

Rows = Mapping[tuple[str, MetricKey], StoredResult]  # (stage, metric) -> row


class EvaluationJob(ModelConfig, EvaluationText, QualityConfig, JobConfig):
    """Model, dense reference, and measurements."""

    model: ModelSpec = option(DEFAULT_MODEL, "Run or model")
    """A run that saved a model, such as sds-0042, or a model name, Hugging Face id or folder."""
    dense: str = option("", "Dense model", max_length=300, choices="saved")
    """Reference model. Empty: the source model of the run; no reference for other models."""
    batch: int = option(4, "Batch size", ge=1, le=256, unit="windows", advanced=True)
    """Windows per forward pass. More windows are faster on a GPU but need more memory."""
    speed: bool = option(True, "Measure speed")
    """Also measure the decoding speed of both models."""


def models_by_stage(config: EvaluationJob) -> dict[str, str]:
    """Return the spec of the model of each stage, the dense model first if there is one. Raises
    `ConfigError` if the run does not exist or has not saved a model."""
    spec, dense = config.model, absolute(config.dense)
    if is_run(spec):
        dense = dense or source_model(spec)
    return ({DENSE: dense} if dense else {}) | {MODEL: spec}


def size_and_speed(rows: Rows) -> list[str]:
    """Summarize size and decoding speed in sentences; empty without measurements."""
    return [text for text in (_size(rows), _decoding(rows)) if text]


def format_bytes(rows: Rows) -> dict[str, float]:
    """Return the bytes of the linear layers in each format, dense first."""
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
    share = sizes[smallest] / dense
    if share >= 1:
        return "Size: too few zeros for sparse formats, which would be larger than dense 16-bit."
    return (
        f"Size: stored as {smallest}, the linear layers take {100 * share:.0f} % of dense 16-bit. "
        "The saved file stores zeros like other numbers and is not smaller."
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
    """Format the median and range of a decoding speed."""
    lowest, highest = row.details["lowest"], row.details["highest"]
    return f"{row.value:.3g} tokens/s ({lowest:.3g} to {highest:.3g})"


def evaluations(run: str) -> list[Job]:
    """Return the evaluation runs of a run's model, newest first."""
    return [job for job in queries.jobs(kind=NAME) if job.config.get("model") == run]


def load_samples(run: str | int, stage: str = DENSE) -> list[dict[str, Any]]:
    """Return the samples recorded by a run at a stage: prompt, text and tokens of each."""
    for result in queries.results([run]):
        if (result.stage, result.metric) == (stage, SAMPLED):
            return list(result.details["samples"])
    return []


def requirements(config: EvaluationJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = {
        stage: resolve_model(spec, "model" if stage == MODEL else "dense").facts
        for stage, spec in models_by_stage(config).items()
    }
    model = facts[MODEL]
    dense = facts.get(DENSE, model)
    if (model.linears, model.vocabulary) != (dense.linears, dense.vocabulary):
        raise ConfigError(
            f"{model.title} was not derived from {dense.title}.",
            "Their layers or vocabularies have different shapes.",
            "Choose the source model.",
            "dense",
        )
    check_evaluation_text(config, next(iter(facts.values())))
    warnings = check_quality(config, context_length(config, model))
    device = run_memory(config.device)
    streamed, memory_parts = memory_bytes(
        config, model, len(facts), device.free, device.dtype(next(iter(facts.values())).dtype)
    )
    if streamed:
        warnings += ("The model does not fit into memory. No samples are generated.",)
    return Requirements(
        title=model.title,
        work=work(config, model, facts),
        memory=memory_parts,
        device=device,
        warnings=warnings,
        open_ended=bool(config.harness_tasks),
    )


def memory_bytes(
    config: EvaluationJob, facts: ModelFacts, models: int, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Return True if models are read block by block, and the peak memory in bytes by purpose. Both
    models are in memory at the same time, since they are timed in turn."""
    context = context_length(config, facts)
    states = memory.activation_memory(facts, config.windows, context, dtype)
    if memory.spills_to_disk("auto", states, available):
        states = memory.activation_memory(facts, config.batch, context, dtype)

    def needed(streamed: bool) -> dict[str, int]:
        sizes = memory.memory_parts(
            facts,
            dtype=dtype,
            copies=models,
            context=context,
            batch=config.batch,
            windows=config.windows,
            streamed=streamed,
        )
        return sizes | {"activations": states}

    is_tight = sum(needed(False).values()) > memory.STREAMING_THRESHOLD * available
    streamed = is_tight and not facts.support.stream
    return streamed, needed(streamed)


def work(config: EvaluationJob, facts: ModelFacts, stages: Collection[str]) -> list[PhaseWork]:
    """See `Requirements.work`."""
    context = context_length(config, facts)
    evaluation = facts.weights_per_token * config.windows * context + ending_products(
        config, facts, config.windows, context
    )
    decoding = decoded_bytes(facts, TIMED_TOKENS * (1 + REPEATS)) * len(stages) * config.speed
    sampling = sampled_bytes(config, facts)
    return [
        *(PhaseWork(stage, evaluation, "float32") for stage in stages),
        *(PhaseWork(stage, sampling, "memory") for stage in stages),
        PhaseWork("decode", decoding, "memory"),
    ]


def verdict(stages: StageComparison) -> str:
    """Compare the perplexity of the model with that of the dense model, in words."""
    if not {DENSE, MODEL} <= stages.perplexity.keys():
        return ""
    return f"Perplexity {stages.clause(MODEL, {DENSE: 'the dense model'}, 'is')}."


KIND = Kind(
    name=NAME,
    title="Evaluation",
    summary="Measure quality, size and speed of a model, compared to its dense source model.",
    config=EvaluationJob,
    requirements=requirements,
    run="jobs.evaluation.run:run",
    order=60,
    main_fields=("dense", "windows", "speed"),
    stages=LABELS,
    verdict=verdict,
    presets={
        "quick look": {"windows": 8, "context": 256, "sample_tokens": 24},
        "default": {},
        "long context": {"windows": 40, "context": 2048},
    },
)
