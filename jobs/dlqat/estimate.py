"""What a DL-QAT run costs, before it starts: memory, and work by its parts. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.errors import ConfigError
from backend.methods.dlqat.config import TEACHER_TOKENS, TRAINED, DLQATStage
from backend.methods.dlqat.layer_selection import quantised_layers, trainable
from backend.models.facts import LinearShape, ModelFacts
from backend.models.memory import memory_parts, readable, refuse_beyond
from jobs.evaluation.acceleration import REPEATS, TOKENS
from jobs.evaluation.quality import DECODED, quality_work
from jobs.fields.text import context_length
from jobs.runtime.costs import ADAM, GRAM_SHARE, LOOKING

if TYPE_CHECKING:
    from jobs.dlqat.run import DLQATJob

SLOW = 2.0  # float32 products take about twice as long as bfloat16 ones, where those are used
ROUNDING = {
    "minmax": 50.0,
    "mse": 2500.0,
    "weighted": 2500.0,
    "lsq": 15000.0,
}  # a weight's, as flop
IN_GRID = 300.0  # rebuilding codes of one weight, forward and backward
ACTIVATIONS = 40  # numbers of the width of a hidden state that one token keeps in one block
CACHED = 16  # bytes of one kept prediction: probability and token, while they are stacked twice
LOGITS = 14  # bytes of one logit in training: 16 bits, float32, its gradient, a copy


def shapes(layers: list[LinearShape]) -> list[tuple[int, int]]:
    """(out, in) of each."""
    return [(x.rows, x.columns) for x in layers]


def memory(config: DLQATJob, facts: ModelFacts, dtype: str = "float32") -> dict[str, int]:
    """Bytes at the peak, by what they are for."""
    layers = quantised_layers(facts.linears, config)
    weights = sum(rows * columns for rows, columns in shapes(layers))
    needed = memory_parts(
        facts,
        dtype=dtype,
        segments=config.segments,
        context=context_length(config, facts),
        batch=config.calibration_batch,
        stages=4,
    )
    needed["held"] = 4 * weights  # a stage's weights or a start, beside the dense ones
    needed["training"] = training_memory(config, facts)
    return needed


def training_memory(config: DLQATJob, facts: ModelFacts) -> int:
    """Bytes that only training takes: trained numbers, activations, logits."""
    if not any(stage in (*TRAINED, DLQATStage.LORA) for stage in config.stages):
        return 0
    layers = shapes(quantised_layers(facts.linears, config))
    trained = trainable(layers, config.rank, config.group_size)
    tokens, number = config.batch * config.length, 4 if config.precision == "float32" else 2
    deep = 1 + facts.blocks / ACTIVATIONS if config.checkpointing else facts.blocks
    activations = tokens * facts.hidden * ACTIVATIONS * deep * number
    twice = 2 if config.distil and config.teacher == "live" else 1
    cached = 0
    if config.distil and config.teacher == "cached":
        cached = CACHED * TEACHER_TOKENS * config.steps * config.accumulate * tokens
    logits = twice * LOGITS * tokens * facts.vocabulary
    return int(ADAM * trained + activations + logits + cached)


def refuse_memory(needed: dict[str, int], available: int, facts: ModelFacts) -> None:
    """Refuses what would not fit.

    Raises:
        ModelRefused: the model itself, or its calibration, does not.
        ConfigRefused: training does not.
    """
    training = needed["training"]
    refuse_beyond({k: v for k, v in needed.items() if k != "training"}, available, facts.title)
    if sum(needed.values()) > available:
        raise ConfigError(
            "The training does not fit into memory.",
            f"It needs about {readable(training)} besides the model; "
            f"{readable(available - sum(needed.values()) + training)} are left for it.",
            "Lower the rows per step or the row length, or switch on gradient checkpointing.",
            field="batch",
        )


def parts(config: DLQATJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each part of the job, in order: the basis of estimate and
    progress."""
    layers = quantised_layers(facts.linears, config)
    weights = float(sum(rows * columns for rows, columns in shapes(layers)))
    head = facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    evaluation = SLOW * 2 * (weights + head) * config.windows * context
    samples = quality_work(config, facts)
    forward = 2 * weights * config.segments * context
    grams = 2.0 * sum(x.columns**2 for x in layers) * GRAM_SHARE * config.segments * context
    solve = 3 * SLOW * sum(x.rows * x.columns**2 for x in layers)
    walk = 2 * forward + grams + solve + ROUNDING[config.space] * weights
    tokens = config.steps * config.batch * config.accumulate * config.length
    lora = tokens * (4 * weights + 4 * head)
    trained = tokens * 6 * weights + tokens * 4 * head + config.steps * IN_GRID * weights
    make: dict[str, float] = {
        DLQATStage.RTN: ROUNDING["minmax"] * weights,
        DLQATStage.MSE: ROUNDING["mse"] * weights,
        DLQATStage.GPTQ: ROUNDING["minmax"] * weights,
        DLQATStage.LORA: lora,
        DLQATStage.LORA_RTN: ROUNDING["minmax"] * weights,
        DLQATStage.LORA_GPTQ: walk,
        DLQATStage.DLQAT_KD: trained + tokens * 2 * (weights + head),
    }
    energies = config.start == "rounded" and config.space in ("weighted", "lsq")
    found = {"dense": evaluation + samples}
    found["prepare"] = walk * config.needs_gptq + forward * energies + weights
    for stage in config.stages[1:]:
        found[f"make {stage}"] = make.get(stage, trained)
        found[f"measure {stage}"] = evaluation + samples * (stage == config.kept)
    found["audit"] = forward + grams + LOOKING * weights * len(config.stages)
    found["save"] = 100 * weights
    found["speed"] = 2 * 2 * (weights + head) * DECODED * TOKENS * (1 + REPEATS) * config.packed
    return found
