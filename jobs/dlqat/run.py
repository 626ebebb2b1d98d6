"""DL-QAT as a job: load, measure, make every quantised stage asked for, measure each, collect
statistics of all, export one."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from backend.models.facts import ModelFacts
from backend.models.loading import LoadedModel
from backend.quantization.config import CALIBRATION_BATCH, STAGE_LABELS, TRAINED, DLQATStage
from backend.quantization.dlqat.pipeline import DLQAT
from backend.quantization.plan import QuantizationPlan
from backend.text.slices import TextSlice, check_apart, sample_slice
from backend.text.training import TrainingSet, training_set
from backend.training import distributed
from jobs.dlqat.config import NOT_QUANTIZED, SAME, DLQATJob
from jobs.dlqat.estimate import flops_by_phase, trainable_parameters
from jobs.dlqat.export import mean_bits, save_model, time_packed
from jobs.evaluation.quality import Quality, Role
from jobs.fields.base_model import resolve_model
from jobs.fields.text import corpus_names
from jobs.metrics import BITS_PER_WEIGHT, PARAMETER_SHARE, PARAMETERS, RELATIVE_ERROR
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.follower import FollowerContext
from jobs.runtime.loading import load_texts, load_whole, text_facts
from jobs.runtime.progress import Phases

Rows = tuple[Tensor, Tensor, Tensor]  # token ids of calibration and training, and labels


def run(config: DLQATJob, context: JobContext) -> None:
    """The whole job. Everything that is finished is in a checkpoint or the database, so a killed
    job goes on where it was."""
    device = prepare(config, context)
    context.log(f"Loading {config.model} on {device}.")
    base = resolve_model(config.model)
    loaded = load_whole(base, device, torch.float32, context)  # as measured, so it is exported
    plan = QuantizationPlan.model_validate(context.plan)
    flops = flops_by_phase(config, plan, loaded.facts)
    phases = Phases(context, flops)
    calibration, evaluation = load_texts(config, loaded, config.seed, context)
    training = load_training(config, loaded, calibration, evaluation, context)
    rows = (calibration.input_ids, training.text.input_ids, training.labels)
    qat = method(config, loaded, rows, context)
    distributed.broadcast(tuple(each.cpu() for each in rows))
    quality = Quality(
        config, loaded, evaluation, context, batch=CALIBRATION_BATCH, labels=STAGE_LABELS
    )
    quality.measure(DLQATStage.DENSE, phases.phase("dense"), "dense")
    for stage in qat.prepare(phases.phase("prepare")):
        qat.make(stage, phases.phase(f"make {stage}"))
        role: Role = "kept" if stage == config.kept else ""
        with qat.installed(stage) if quality.missing(stage, role) else nullcontext():
            quality.measure(stage, phases.phase(f"measure {stage}"), role)
    distributed.announce("")
    record(qat, phases, config, loaded.facts, context)
    save_model(qat, loaded, config, context)
    time_packed(loaded, evaluation.input_ids[0].tolist(), config, phases.phase("speed"), context)
    context.outcome(flops=sum(flops.values()))


def follow(config: DLQATJob, context: FollowerContext) -> None:
    """Train with the first process of a job, on the rows it gives."""
    device = prepare(config, context)
    loaded = load_whole(resolve_model(context.model), device, torch.float32, context)
    rows: Rows | None = distributed.broadcast(None)
    assert rows is not None
    method(config, loaded, rows, context).follow()


def method(
    config: DLQATJob, loaded: LoadedModel, rows: Rows, context: JobContext | FollowerContext
) -> DLQAT:
    """The method on a loaded model."""
    plan = QuantizationPlan.model_validate(context.plan)
    dense = loaded.stored if config.format == "dense" else None
    return DLQAT(loaded.model, *rows, config, plan, context.checkpoints, config.seed, dense)


def load_training(
    config: DLQATJob,
    loaded: LoadedModel,
    calibration: TextSlice,
    evaluation: TextSlice,
    context: JobContext,
) -> TrainingSet:
    """The rows to train on; records them, and that the evaluation shares nothing with them."""
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
        training = TrainingSet(text, text.input_ids, "text")
    else:
        training = training_set(
            name, loaded.tokenizer, config.steps * size, config.length, seed, size,
            shared=name == evaluated,
        )  # fmt: skip
    check_apart(training.text, evaluation)
    epochs = config.steps * size / len(training.labels)
    context.log(
        f"Training on {len(training.labels)} rows of {name} ({training.form}), {epochs:.2g} times."
    )
    texts = {"calibration": calibration, "evaluation": evaluation, "training": training.text}
    context.environment(text={role: text_facts(one) for role, one in texts.items()})
    return training


def record(
    qat: DLQAT, phases: Phases, config: DLQATJob, facts: ModelFacts, context: JobContext
) -> None:
    """Looks at every stage and records what was found out about it."""
    for stage, error in qat.audit(phases.phase("audit")).items():
        context.result(stage, RELATIVE_ERROR, error)
    for stage in config.stages:
        if stage in (*TRAINED, DLQATStage.LORA):
            trained = trainable_parameters(config, qat.run.plan, facts, stage)
            context.result(stage, PARAMETERS, trained)
            context.result(stage, PARAMETER_SHARE, trained / facts.parameters)
        if stage not in NOT_QUANTIZED:
            bits = mean_bits(qat.run.plan, facts, config.stored)
            context.result(stage, BITS_PER_WEIGHT, bits)
    for stage, seconds in qat.seconds.items():
        context.step_time(STAGE_LABELS[stage], seconds)
    context.outcome(kept_stage=config.kept)
