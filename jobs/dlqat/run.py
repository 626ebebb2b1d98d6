"""DL-QAT job: load, measure, make the requested quantized stages, choose one on held-out text,
measure and audit all, export the chosen stage."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean

import torch

from backend.calibration.kept_stage import KeptStage, choose
from backend.evaluation.perplexity import native_losses
from backend.metric_key import MetricKey
from backend.models.block_offload import all_resident
from backend.models.blocks import resolve_dtype
from backend.models.devices import device_memory
from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel
from backend.quantization.config import CALIBRATION_BATCH, STAGE_LABELS, TRAINED, DLQATStage
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import QuantizationPlan
from backend.text.slices import TextSlice, require_disjoint, sample_slice
from backend.text.training import TrainingSet, training_set
from jobs import metrics
from jobs.dlqat.export import mean_bits, save_model, time_packed
from jobs.dlqat.kind import (
    NOT_QUANTIZED,
    SAME,
    DLQATJob,
    memory_bytes,
    trainable_parameters,
    work,
)
from jobs.evaluation.quality import Quality, Role
from jobs.fields.models import resolve_model
from jobs.fields.text import corpus_names
from jobs.runtime import loading
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.progress import Phase, Phases


def run(config: DLQATJob, context: JobContext) -> None:
    """Run the job. Finished work is in checkpoints and the database, so an interrupted run
    continues where it stopped."""
    device = prepare(config, context)
    evaluation = loading.load_evaluation_text(config, config.model, context)
    base, available = resolve_model(config.model), device_memory(device)
    precision = context.checkpoints.settled()  # by an attempt on another device
    precision = precision or resolve_dtype(config.precision, torch.device(device))
    # a GPU holds the weights as stored if the passes round them to 16 bits anyway
    dtype = available.dtype(base.facts.dtype if precision == "bfloat16" else "float32")
    plan = QuantizationPlan.model_validate(context.plan)
    config = config.model_copy(update={"format": plan.format})
    streamed, _ = memory_bytes(config, plan, base.facts, available, dtype)
    how = "block by block" if streamed else "at once"
    context.log(f"Loading {config.model} on {device}, {how}.")
    loaded = loading.load_whole(base, device, getattr(torch, dtype), context, streamed)
    phases = context.phases(work(config, plan, loaded.facts))
    with all_resident(loaded.model):  # the weights of a streamed model are read once for all this
        qat, quality = open_run(config, plan, loaded, evaluation, context)
        quality.measure(DLQATStage.DENSE, phases.phase("dense"), "dense")
    losses: dict[str, list[float]] = {}
    for stage in qat.prepare(phases.phase("prepare")):
        qat.make(stage, phases.phase(f"make {stage}"))
        losses[stage] = judge(qat, stage, phases.phase(f"judge {stage}"), context)
    kept_stage = keep(losses, config, context)
    for stage in qat.stages:
        role: Role = "kept" if stage == kept_stage else ""
        with ExitStack() as installed:
            if quality.missing(stage, role):
                installed.enter_context(qat.installed(stage))
                installed.enter_context(all_resident(loaded.model))
            quality.measure(stage, phases.phase(f"measure {stage}"), role)
    record(qat, phases, config, loaded.facts, context)
    save_model(qat, kept_stage, loaded, config, context)
    prompt = evaluation.input_ids[0].tolist()
    time_packed(loaded, kept_stage, prompt, config, phases.phase("speed"), context)


def open_run(
    config: DLQATJob,
    plan: QuantizationPlan,
    loaded: LoadedModel,
    evaluation: TextSlice,
    context: JobContext,
) -> tuple[DLQAT, Quality]:
    """Load the other texts. Return the run and the measurements of its stages."""
    texts = loading.load_texts(config, loaded, evaluation, config.seed, context)
    training = load_training(config, loaded, texts, context)
    qat = DLQAT(
        loaded.model,
        texts.calibration.input_ids,
        training.text.input_ids,
        training.labels,
        config,
        plan,
        context.checkpoints,
        config.seed,
        loaded.saved_dtype if config.format == "dense" else None,
        texts.heldout.input_ids,
        native_losses,
    )
    quality = Quality(
        config,
        loaded,
        evaluation,
        context,
        batch=CALIBRATION_BATCH,
        labels=STAGE_LABELS,
        precision=config.evaluation_precision,
        rounded="" if config.format == "dense" else config.saved_precision,
    )
    return qat, quality


def judge(qat: DLQAT, stage: str, phase: Phase, context: JobContext) -> list[float]:
    """Measure and record the held-out losses of a finished stage; empty without held-out text."""
    phase.progress(0, 1, f"Held-out loss: {STAGE_LABELS[stage]}")
    losses = qat.heldout_losses(stage, phase)
    if losses:
        phase.metric(MetricKey("heldout", stage), fmean(losses), 0)
        context.result(stage, metrics.HELDOUT_LOSS, fmean(losses))
    phase.progress(1, 1, f"Held-out loss: {STAGE_LABELS[stage]}")
    return losses


def keep(losses: Mapping[str, Sequence[float]], config: DLQATJob, context: JobContext) -> str:
    """Choose the stage to keep, and record it with the reason."""
    heldout_losses = losses if config.heldout_windows else {}
    choice = choose(heldout_losses, config.candidates, STAGE_LABELS)
    if config.keep != "auto":
        choice = KeptStage(choice.stage, f"Kept: {STAGE_LABELS[choice.stage]}, as configured.")
    context.log(choice.reason)
    context.keep(choice)
    return choice.stage


def load_training(
    config: DLQATJob,
    loaded: LoadedModel,
    texts: loading.RunTexts,
    context: JobContext,
) -> TrainingSet:
    """Load and record the training rows, which do not overlap with held-out or evaluation text."""
    batch_rows = config.batch * config.accumulate
    default = loaded.facts.default_text
    calibration_name, evaluation_name = corpus_names(config, default)
    name = calibration_name if config.training_text == SAME else config.training_text
    seed = config.seed + 1  # rows that differ from those of the calibration, if there are enough
    if name == "self":
        context.log("Sampling the training text from the dense model.")
        text = sample_slice(
            loaded.model, loaded.tokenizer, config.steps * batch_rows, config.length, seed, context
        )
        training = TrainingSet(text, text.input_ids, "text")
    else:
        training = training_set(
            name,
            loaded.tokenizer,
            config.steps * batch_rows,
            config.length,
            seed,
            batch_rows,
            shared=name == evaluation_name,
            excluded=[text_slice.input_ids for text_slice in texts.judged if text_slice.tokens],
        )
    require_disjoint(training.text, texts.evaluation)
    epochs = config.steps * batch_rows / len(training.labels)
    context.log(
        f"Training on {len(training.labels)} rows of {name} ({training.form}), {epochs:.2g} times."
    )
    loading.record_texts(texts.by_role | {"training": training.text}, context)
    return training


def record(
    qat: DLQAT, phases: Phases, config: DLQATJob, facts: ModelFacts, context: JobContext
) -> None:
    """Audit every stage and record errors, sizes, times and lowered learning rates."""
    for stage, error in qat.audit(phases.phase("audit")).items():
        context.result(stage, metrics.RELATIVE_ERROR, error)
    for stage in config.stages:
        if stage in (*TRAINED, DLQATStage.LORA):
            trained = trainable_parameters(config, qat.run.plan, facts, stage)
            context.result(stage, metrics.PARAMETERS, trained)
            context.result(stage, metrics.PARAMETER_SHARE, trained / facts.parameters)
        if stage not in NOT_QUANTIZED:
            bits = mean_bits(qat.run.plan, facts, config.saved_precision)
            context.result(stage, metrics.BITS_PER_WEIGHT, bits)
    for stage, seconds in qat.seconds.items():
        context.step_time(STAGE_LABELS[stage], seconds)
    rates = {stage: rate for stage in qat.stages if (rate := qat.lowered_rate(stage)) is not None}
    lowered_rate = [
        f"{STAGE_LABELS[stage]} was trained with a learning rate of {rate:g}, "
        f"since {config.learning_rate:g} increased the held-out loss."
        for stage, rate in rates.items()
    ]
    context.record_environment(warnings=lowered_rate)
