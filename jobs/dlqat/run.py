"""DL-QAT as a job: load, measure, quantise in every way that was asked for, train, measure each
stage, look at all of them, export one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from backend.errors import ConfigError, DatasetError
from backend.export.formats import ExportRequirements, Format, refuse_unholdable
from backend.methods.dlqat.config import STAGE_LABELS, TRAINED, DLQATConfig, DLQATStage
from backend.methods.dlqat.layer_selection import quantised_layers, refuse_idle, trainable
from backend.models.facts import LinearShape, ModelFacts
from backend.models.memory import memory_available
from backend.models.sources.catalogue import inspect
from backend.text.corpora import require_corpus
from jobs.dlqat.estimate import memory, parts, refuse_memory, shapes
from jobs.dlqat.export import mean_bits, save_model, time_packed
from jobs.evaluation.quality import QualityConfig, check_quality
from jobs.fields.model import ModelConfig
from jobs.fields.text import TextConfig, check_text, corpus_names, text_facts
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.duration import estimate_seconds

if TYPE_CHECKING:
    from backend.methods.dlqat.pipeline import DLQAT
    from backend.models.loading import LoadedModel
    from backend.text.slices import TextSlice
    from backend.text.training import TrainingSet
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phases

NAME, SAME = "dlqat", "same"
TRANSPOSED = ("GPT2", "OpenAIGPT")  # architectures whose layers are no nn.Linear
BEST_FIRST = (
    DLQATStage.DLQAT,
    DLQATStage.DLQAT_KD,
    DLQATStage.LORA_ONLY,
    DLQATStage.M_ONLY,
    DLQATStage.GPTQ,
    DLQATStage.MSE,
    DLQATStage.RTN,
)


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, JobConfig):
    """A model, its texts, and the choices of the method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    training_text: str = Field(
        SAME,
        min_length=1,
        max_length=300,
        title="Training text",
        description="same: the calibration text. A .jsonl file of instructions with answers is "
        "learned by its answers alone.",
    )
    format: Format = Field(
        "compressed-tensors",
        title="Export format",
        description="compressed-tensors: stock transformers loads it. gptq, gptq_v2: for programs "
        "with GPTQ kernels. dense: for any program, without a gain in size.",
    )
    packed: bool = Field(
        True,
        title="Time packed decoding",
        description="At the end, decode with the dense model and with the exported one on packed "
        "weights, both in bfloat16. On the CPU only.",
        json_schema_extra={"advanced": True},
    )
    keep: Literal[
        "auto", "rtn", "mse", "gptq", "m-only", "lora-only", "dlqat", "dlqat-kd",
        "lora-rtn", "lora-gptq",
    ] = Field(
        "auto",
        title="Stage exported",
        description="auto: DL-QAT, or the nearest to it that was made.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip

    @property
    def kept(self) -> DLQATStage:
        """The stage that is exported."""
        if self.keep != "auto":
            return DLQATStage(self.keep)
        return next((s for s in BEST_FIRST if s in self.stages), DLQATStage.LORA_RTN)


# before the work ----------------------------------------------------------------------------------


def check(config: DLQATJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    facts = inspect(config.model)
    refuse_idle(config)
    layers = quantised_layers(facts.linears, config)
    warnings = check_text(config, facts) + check_quality(config) + said(config, layers, facts)
    _refuse_training_text(config, facts)
    _refuse_keep(config)
    refuse_unholdable(config.format, choice(config, layers, facts))
    needed = memory(config, facts)
    refuse_memory(needed, memory_available(), facts)
    work = sum(parts(config, facts).values())
    seconds, basis = estimate_seconds(NAME, config.model, work)
    asked = bool(config.task_names)
    return Estimate(seconds, sum(needed.values()), work, basis, warnings, open_ended=asked)


def choice(config: DLQATJob, layers: list[LinearShape], facts: ModelFacts) -> ExportRequirements:
    """What the export format has to hold."""
    return ExportRequirements(
        bits=config.bits,
        symmetric=config.symmetric,
        stored=config.stored,
        in_out=facts.architecture.startswith(TRANSPOSED),
        whole=len(layers) == len(facts.linears),
        shapes=frozenset(shapes(layers)),
    )


def said(config: DLQATJob, layers: list[LinearShape], facts: ModelFacts) -> tuple[str, ...]:
    """What a person should know beforehand."""
    texts = []
    if any(stage in TRAINED for stage in config.stages):
        trained = trainable(shapes(layers), config.rank, config.group_size, config.magnitude)
        texts.append(
            f"DL-QAT trains {trained:,} numbers, {trained / facts.parameters:.2%} of the model's."
        )
    if config.format == "compressed-tensors" and not config.symmetric:
        texts.append(
            "A grid that is not symmetric loads in transformers only with "
            "CompressedTensorsConfig(dequantize=True)."
        )
    return tuple(texts)


def _refuse_training_text(config: DLQATJob, facts: ModelFacts) -> None:
    if config.length > facts.context:
        raise ConfigError(
            f"Rows of {config.length} tokens do not fit.",
            f"{facts.title} reads at most {facts.context}.",
            "Choose a shorter row length.",
            field="length",
        )
    if config.training_text != SAME:
        try:
            require_corpus(config.training_text, "calibration_text")
        except DatasetError as error:
            error.field = "training_text"
            raise


def _refuse_keep(config: DLQATJob) -> None:
    if config.kept not in config.stages:
        made = [s for s in config.stages if s not in (DLQATStage.DENSE, DLQATStage.LORA)]
        raise ConfigError(
            f"{STAGE_LABELS[config.kept]} cannot be exported.",
            "This run does not make it.",
            f"Choose {', '.join(made) or 'a quantised stage'}.",
            field="keep",
        )


# the work -----------------------------------------------------------------------------------------


def run(config: DLQATJob, context: JobContext) -> None:
    """The whole job. Everything that is finished is in a checkpoint or the database, so a killed
    job goes on where it was."""
    import torch

    from backend.methods.dlqat.pipeline import DLQAT
    from backend.models.loading import load
    from jobs.evaluation.quality import Quality
    from jobs.fields.text import load_texts
    from jobs.runtime.environment import prepare
    from jobs.runtime.progress import Phases

    device = prepare(config, context)
    context.log(f"Loading {config.model} on {device}.")
    loaded = load(config.model, device, torch.float32)  # as it is measured, so it is exported
    phases = Phases(context, parts(config, loaded.facts))
    calibration, evaluation = load_texts(config, loaded, config.seed, context)
    training = load_training(config, loaded, calibration, evaluation, context)
    rows = (training.text.input_ids, training.labels)
    qat = DLQAT(
        loaded.model, calibration.input_ids, *rows, config, context.checkpoints, config.seed
    )
    quality = Quality(
        config, loaded, evaluation, context, batch=config.calibration_batch, labels=STAGE_LABELS
    )
    quality.measure(DLQATStage.DENSE, phases.phase("dense"), "dense")
    for stage in qat.prepare(phases.phase("prepare")):
        qat.make(stage, phases.phase(f"make {stage}"))
        role: Literal["kept", ""] = "kept" if stage == config.kept else ""
        with qat.installed(stage) if quality.missing(stage, role) else nullcontext():
            quality.measure(stage, phases.phase(f"measure {stage}"), role)
    record(qat, phases, config, loaded.facts, context)
    save_model(qat, loaded, config, context)
    time_packed(loaded, evaluation.input_ids[0].tolist(), config, phases.phase("speed"), context)
    context.result("run", "work", sum(parts(config, loaded.facts).values()))


def load_training(
    config: DLQATJob,
    loaded: LoadedModel,
    calibration: TextSlice,
    evaluation: TextSlice,
    context: JobContext,
) -> TrainingSet:
    """The rows to train on; records them, and that the evaluation shares nothing with them."""
    from backend.text.slices import check_apart, sample_slice
    from backend.text.training import TrainingSet, training_set

    size = config.batch * config.accumulate
    suits = loaded.facts.default_text
    calibrated, evaluated = corpus_names(config, suits)
    name = calibrated if config.training_text == SAME else config.training_text
    seed = config.seed + 1  # other rows than those of the calibration, as far as there are
    if name == "self":
        context.log("Sampling the training text from the dense model.")
        text = sample_slice(
            loaded.model, loaded.tokenizer, config.steps * size, config.length, seed, context
        )
        found = TrainingSet(text, text.input_ids, "text")
    else:
        found = training_set(
            name, loaded.tokenizer, config.steps * size, config.length, seed, size,
            shared=name == evaluated,
        )  # fmt: skip
    check_apart(found.text, evaluation)
    epochs = config.steps * size / len(found.labels)
    context.log(
        f"Training on {len(found.labels)} rows of {name} ({found.form}), {epochs:.2g} times."
    )
    texts = {"calibration": calibration, "evaluation": evaluation, "training": found.text}
    context.environment(text={role: text_facts(one) for role, one in texts.items()})
    return found


def record(
    qat: DLQAT, phases: Phases, config: DLQATJob, facts: ModelFacts, context: JobContext
) -> None:
    """Looks at every stage and records what was found out about it."""
    for stage, error in qat.audit(phases.phase("audit")).items():
        context.result(stage, "relative_error", error)
    layers = quantised_layers(facts.linears, config)
    for stage in config.stages:
        if stage in (*TRAINED, DLQATStage.LORA):
            low_rank, magnitude = config.trains(stage) if stage in TRAINED else (True, False)
            rank = config.rank * low_rank
            trained = trainable(shapes(layers), rank, config.group_size, magnitude)
            context.result(stage, "parameters", trained)
            context.result(stage, "parameter_share", trained / facts.parameters)
        if stage not in (DLQATStage.DENSE, DLQATStage.LORA):
            context.result(stage, "bits_per_weight", mean_bits(config, layers))
    for stage, seconds in qat.seconds.items():
        context.result("run", f"seconds/{STAGE_LABELS[stage]}", seconds)
    context.result("run", "kept", 1.0, kept=config.kept)


def verdict(perplexity: Mapping[str, float]) -> str:
    """In words, whether the method helped on this model. `perplexity`: stage -> value."""
    trained = next((s for s in (DLQATStage.DLQAT, DLQATStage.DLQAT_KD) if s in perplexity), None)
    rival = next(
        (s for s in (DLQATStage.GPTQ, DLQATStage.MSE, DLQATStage.RTN) if s in perplexity), None
    )
    if trained is None or rival is None:
        return ""
    value = perplexity[trained]
    text = f"{STAGE_LABELS[trained]} ends {_compared(value, perplexity[rival])} "
    text += STAGE_LABELS[rival]
    if DLQATStage.LORA_GPTQ in perplexity:
        other = perplexity[DLQATStage.LORA_GPTQ]
        text += f" and {_compared(value, other)} {STAGE_LABELS[DLQATStage.LORA_GPTQ]}"
    text += "."
    if DLQATStage.LORA in perplexity and trained == DLQATStage.DLQAT:
        text += (
            f" The same training without quantisation ends at {perplexity[DLQATStage.LORA]:.2f}: "
            f"quantisation costs {value / perplexity[DLQATStage.LORA] - 1:.1%} on top of it."
        )
    if value < perplexity.get(DLQATStage.DENSE, 0.0):
        text += " It ends below the dense model because it was trained on such text."
    if value >= perplexity[rival]:
        text += " Training did not help on this model."
    return text


def _compared(value: float, other: float) -> str:
    """ "10.5 % below" or "3.0 % above"; perplexities, lower is better."""
    change = 100 * (value / other - 1)
    return f"{abs(change):.1f} % {'below' if change < 0 else 'above'}"


KINDS = (
    Kind(
        name=NAME,
        title="DL-QAT quantisation",
        summary="Train low-rank updates inside the rounding and one magnitude a group.",
        config=DLQATJob,
        check=check,
        run=run,
        stages=STAGE_LABELS,
        verdict=verdict,
        presets={
            "quick look": {
                "segments": 16, "context": 256, "windows": 8, "steps": 10, "lora": False,
            },
            "default": {},
            "thorough": {
                "segments": 64, "windows": 32, "steps": 200, "distil": True, "lora_gptq": True,
                "mse": True, "m_only": True, "lora_only": True,
            },
        },
    ),
)  # fmt: skip
