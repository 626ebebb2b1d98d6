"""What an SDS run needs before it starts: FLOPs, memory, disk, and what is refused."""

from __future__ import annotations

from typing import Any

from backend.errors import ConfigError
from backend.methods.sds.config import RECONSTRUCTED, SDSStage, refuse_tuning
from backend.methods.sds.layer_selection import layer_patterns
from backend.methods.sds.owl import refuse_allocation
from backend.methods.sds.pruners import DECLARED_PRUNERS
from backend.models.facts import ModelFacts
from backend.models.memory import (
    COMFORT,
    WEIGHT_BYTES,
    activation_memory,
    block_training_memory,
    memory_available,
    memory_needed,
    memory_parts,
    wait_on_disk,
    weight_memory,
)
from jobs.fields.base_model import resolve_model
from jobs.fields.text import check_text, context_length
from jobs.kind import DiskSpace, Requirements
from jobs.runtime.duration import GRAM_SHARE
from jobs.sds.config import SDSJob

BLOCK_COPIES = 6  # of the block at work: its stages, and a sorted one for statistics


def requirements(config: SDSJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    refuse_allocation(config)
    refuse_tuning(config, config.segments)
    require_experts_fit(config, facts)
    layer_patterns(facts.linears, config)
    warnings = check_text(config, facts)
    require_stored_text(config)
    streamed, needed = memory_bytes(config, facts, memory_available())
    if streamed:
        warnings += ("The model does not fit into memory: its blocks are read from disk.",)
    return Requirements(
        model=config.model,
        title=facts.title,
        flops=flops_by_phase(config, facts),
        memory=needed,
        disk=disk_space(config, facts),
        warnings=warnings,
    )


def require_experts_fit(config: SDSJob, facts: ModelFacts) -> None:
    """Refuse settings that a mixture of experts does not support.

    Raises:
        ConfigError: names the field.
    """
    if facts.support.mixture and config.redense == "sgd":
        raise ConfigError(
            "The solver sgd does not support a mixture of experts.",
            "It needs the inputs of whole segments, and an expert sees some of their tokens.",
            "Choose gram or ridge.",
            field="redense",
        )
    if facts.support.stream and config.weights == "streamed":
        raise ConfigError(
            f"{facts.title} cannot be read block by block.",
            facts.support.stream,
            "Choose auto or memory.",
            field="weights",
        )


def flops_by_phase(config: SDSJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each phase: the basis of estimate and progress.

    Held-out segments are counted as calibration: in tuning, they pass through the blocks, too.
    """
    weights = facts.linear_weights
    solve = 2.0 * sum(x.rows * x.columns**2 for x in facts.linears)  # one product with a Gram
    grams = 2.0 * sum(x.columns**2 for x in facts.linears) * GRAM_SHARE
    context = context_length(config, facts)
    calibration, evaluation = (n * context for n in (config.segments, config.windows))
    whole = config.until == "sds"
    adjustments = config.control + config.soft_control + (whole and config.adjust != "off")
    sgd_steps = config.sgd_epochs * config.segments  # each a product with one segment's Gram
    redense = {"gram": config.redense_steps, "ridge": 1, "sgd": sgd_steps}[config.redense]
    steps = whole * redense + config.adjust_steps * adjustments + pruning_products(config)
    steps += tuning_products(config)
    passes = 2 * (1 + whole) + (config.allocation == "owl")
    made = [stage for stage in RECONSTRUCTED if stage in config.stages]
    # the dense and the compressed block once; forwards and backwards to train
    reconstructed = len(made) * (2 + 3 * config.reconstruct) * 2.0 * weights * calibration
    one_evaluation = 2.0 * (weights + facts.vocabulary * facts.hidden) * evaluation
    return {
        "dense": one_evaluation,
        "prune": passes * (2.0 * weights + grams) * calibration + steps * solve + reconstructed,
        "evaluate": (len(config.stages) - 1) * one_evaluation,
    }


def pruning_products(config: SDSJob) -> float:
    """Products with an [in, in] matrix per row of weights that the pruners make, as they declare:
    of the first pruning and of the second."""
    return sum(_products(pruner) for pruner in _prunings(config))


def tuning_products(config: SDSJob) -> float:
    """The same of tuning: every damping that is tried prunes each weight and takes one product to
    measure its error."""
    return sum(len(config.dampings(x)) * (_products(x) + 1) for x in _prunings(config))


def _prunings(config: SDSJob) -> list[str]:
    """The pruner of each pruning."""
    return [config.base, *([config.second_pruner] if config.until == "sds" else [])]


def _products(pruner: str) -> float:
    return float(DECLARED_PRUNERS[pruner].facts.get("products", 0.0))


def memory_bytes(
    config: SDSJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether the model is streamed, and then purpose -> bytes at the peak.

    auto streams a model that would not fit, unless it samples its own calibration text: then every
    token would read all of it from disk.
    """
    states = hidden_state_bytes(config, facts, dtype)
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments,
        "context": context_length(config, facts),
        "batch": config.batch,
        "streams": config.streams,
        "stages": BLOCK_COPIES,
        "on_disk": wait_on_disk(config.activations, states, available),
    }
    grams = memory_parts(facts, streamed=False, **sizes)["grams"] if config.tune else 0
    trained = block_training_memory(facts, sizes["context"]) if config.reconstruct else 0
    tight = memory_needed(facts, **sizes) + grams + trained > COMFORT * available
    auto = config.weights == "auto" and config.calibration_text != "self"
    auto = auto and not facts.support.stream
    streamed = config.weights == "streamed" or (auto and tight)
    needed = memory_parts(facts, streamed=streamed, **sizes)
    if grams:  # those of the held-out text beside those of the other segments
        needed["held-out grams"] = grams
    if trained:
        needed["reconstruction"] = trained
    if config.redense == "sgd":  # holds the Gram of every segment for the linears of a block
        block = sum(x.columns**2 for x in facts.linears if x.block == facts.linears[0].block)
        needed["segment grams"] = int(4 * config.segments * block * GRAM_SHARE)
    return streamed, needed


def hidden_state_bytes(config: SDSJob, facts: ModelFacts, dtype: str = "float32") -> int:
    """Bytes of the hidden states of the calibration text."""
    context = context_length(config, facts)
    return config.streams * activation_memory(facts, config.segments, context, dtype)


def require_stored_text(config: SDSJob) -> None:
    """Refuse a streamed model that would sample its own calibration text.

    Raises:
        ConfigError: for the field of the text.
    """
    if config.weights == "streamed" and config.calibration_text == "self":
        raise ConfigError(
            "A streamed model cannot sample its own calibration text.",
            "Every token would read the whole model from disk.",
            "Choose a corpus, or keep the weights in memory.",
            field="calibration_text",
        )


def disk_space(config: SDSJob, facts: ModelFacts) -> DiskSpace:
    """What a run leaves and needs on disk at its peak: stages, the saved model, hidden states.

    A stage is kept in the dtype of the model's files, but for the re-dense one, which is float32.
    """
    pruned = facts.linear_weights
    dtype = facts.dtype if facts.dtype in ("float16", "bfloat16") else "float32"
    width = WEIGHT_BYTES[dtype]
    stages = sum(pruned * (4 if stage == SDSStage.REDENSE else width) for stage in config.stages)
    states = hidden_state_bytes(config, facts)
    waiting = wait_on_disk(config.activations, states, memory_available())
    return DiskSpace(
        stages + weight_memory(facts, dtype) + states * waiting,
        f"Its {len(config.stages)} stages and the saved model",
        "Leave out the control, stop after the first pruning, or free some space.",
        "until",
    )
