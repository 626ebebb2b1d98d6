"""What a DL-QAT run needs before it starts: FLOPs, memory, and what is refused."""

from __future__ import annotations

from backend.errors import ConfigError
from backend.export.formats import ExportRequirements, check_format, vllm_hint
from backend.models.facts import ModelFacts
from backend.models.families.shapes import LinearShape
from backend.models.memory import (
    block_training_memory,
    check_memory,
    memory_available,
    memory_parts,
)
from backend.printable import readable_bytes
from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES
from backend.quantization.dlqat.config import STAGE_LABELS, TRAINED, DLQATStage, can_be_packed
from backend.quantization.dlqat.layer_selection import quantized_layers, refuse_idle, trainable
from backend.quantization.llama_blocks import require_llama_blocks
from backend.registry import Declarations
from jobs.dlqat.config import NOT_QUANTIZED, SAME, DLQATJob
from jobs.evaluation.report import REPEATS, TIMED_TOKENS
from jobs.fields.base_model import resolve_model
from jobs.fields.processes import memory_of_others, require_processes
from jobs.fields.quality import DECODED_TOKEN_COST, check_quality, ending_flops, sample_flops
from jobs.fields.text import check_text, context_length, require_text
from jobs.kind import Requirements
from jobs.limits import require_context
from jobs.runtime.duration import ADAM_BYTES, GRAM_SHARE, STATISTICS_FLOPS

SEQUENTIAL_PASSES = 3  # more through a block: behind q, k and v, behind o, behind gate and up
FLOAT32_COST = 2.0  # of float32 products over bfloat16 ones, where those are used
FAKE_QUANT_FLOPS = 300.0  # of one weight: its code is computed again, forward and backward
ACTIVATION_COPIES = 40  # values of hidden size that one token keeps in one block
LOGIT_BYTES = 14  # of one logit in training: 16 bits, float32, its gradient, a copy
ROUNDED_COPIES = 12  # of a block's weights where they are rounded while they are trained
ASYMMETRIC = (
    "An asymmetric grid loads in transformers only with CompressedTensorsConfig(dequantize=True)."
)


def requirements(config: DLQATJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    refuse_idle(config)
    layers = quantized_layers(facts.linears, config)
    require_processes(config.processes, config.device, config.batch * config.accumulate)
    warnings = check_text(config, facts)
    warnings += check_quality(config, context_length(config, facts))
    if config.format == "compressed-tensors" and config.grid == "zero-point":
        warnings += (ASYMMETRIC,)
    require_training_text(config, facts)
    require_kept(config)
    require_blocks(config, layers, facts)
    check_format(config.format, export_requirements(config, layers, facts))
    needed = memory_bytes(config, facts)
    require_training_memory(needed, facts)
    return Requirements(
        model=config.model,
        title=facts.title,
        flops=flops_by_phase(config, facts),
        memory=needed,
        warnings=warnings,
        notes=trained_parameters(config, layers, facts) + hints(config, layers),
        open_ended=bool(config.harness_tasks),
    )


def flops_by_phase(config: DLQATJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each phase, in order: the basis of estimate and progress."""
    layers = quantized_layers(facts.linears, config)
    weights, head = layer_weights(layers), facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    tokens = config.segments * context
    evaluation = FLOAT32_COST * 2 * (weights + head) * config.windows * context
    samples = sample_flops(config, facts)
    samples += FLOAT32_COST * ending_flops(config, facts, config.windows, context)
    forward, grams = 2 * weights * tokens, gram_flops(layers, tokens)
    prepare = weights + forward * config.needs_energies
    if config.needs_gptq:
        prepare += quantizer_flops("gptq", config, layers, tokens)
    flops = {"dense": evaluation + samples, "prepare": prepare}
    for stage in config.stages[1:]:
        flops[f"make {stage}"] = stage_flops(stage, config, layers, head, tokens)
        flops[f"measure {stage}"] = evaluation + samples * (stage == config.kept)
    flops["audit"] = forward + grams + STATISTICS_FLOPS * weights * len(config.stages)
    flops["save"] = 100 * weights
    decoded = DECODED_TOKEN_COST * TIMED_TOKENS * (1 + REPEATS)
    flops["speed"] = 2 * 2 * (weights + head) * decoded * config.packed
    return flops


def stage_flops(
    stage: str, config: DLQATJob, layers: list[LinearShape], head: int, tokens: int
) -> float:
    """Floating-point operations of making a stage.

    Args:
        head: weights of the output layer.
        tokens: of the calibration text.
    """
    weights = layer_weights(layers)
    if stage == DLQATStage.GPTQ:  # computed in the phase "prepare"
        return declared_flops(DECLARED_QUANTIZERS, "gptq") * weights
    if stage == DLQATStage.BLOCKS:
        steps = config.block_epochs * config.segments
        passes = 2 + 3 * config.block_epochs  # of the dense and the rounded block; training
        return passes * 2 * weights * tokens + steps * FAKE_QUANT_FLOPS * weights
    if stage in TRAINED or stage == DLQATStage.LORA:
        return training_flops(stage, config, weights, head)
    method = "gptq" if stage == DLQATStage.LORA_GPTQ else stage
    return quantizer_flops(method, config, layers, tokens)


def training_flops(stage: str, config: DLQATJob, weights: float, head: int) -> float:
    """Floating-point operations of training a stage."""
    tokens = config.steps * config.batch * config.accumulate * config.length
    if stage == DLQATStage.LORA:
        return tokens * (4 * weights + 4 * head)
    flops = tokens * (6 * weights + 4 * head) + config.steps * FAKE_QUANT_FLOPS * weights
    if config.start == "rounded":
        flops += declared_flops(DECLARED_RANGE_SEARCHES, config.space) * weights
    if stage == DLQATStage.DLQAT_KD:
        flops += tokens * 2 * (weights + head)
    return flops


def quantizer_flops(name: str, config: DLQATJob, layers: list[LinearShape], tokens: int) -> float:
    """Floating-point operations of a post-training quantizer: its inputs, then its layers."""
    weights, needs = layer_weights(layers), DECLARED_QUANTIZERS[name].facts.get("needs", "gram")
    flops = declared_flops(DECLARED_QUANTIZERS, name) * weights
    if needs == "nothing":
        return flops
    flops += 2 * 2 * weights * tokens
    if DECLARED_QUANTIZERS[name].facts.get("sequential"):
        flops += 2 * weights * tokens * SEQUENTIAL_PASSES
    if needs == "gram":
        solve = 3 * FLOAT32_COST * sum(x.rows * x.columns**2 for x in layers)
        search = declared_flops(DECLARED_RANGE_SEARCHES, config.space) * weights
        flops += gram_flops(layers, tokens) + solve + search
    return flops


def gram_flops(layers: list[LinearShape], tokens: int) -> float:
    """Floating-point operations of the Gram matrices of all inputs."""
    return 2.0 * sum(x.columns**2 for x in layers) * GRAM_SHARE * tokens


def declared_flops(declarations: Declarations, name: str) -> float:
    """Floating-point operations per weight, as the decorator of an entry states them."""
    return float(declarations[name].facts.get("flops", 0.0))


def layer_weights(layers: list[LinearShape]) -> float:
    """How many weights the layers have."""
    return float(sum(x.weights for x in layers))


def shapes(layers: list[LinearShape]) -> list[tuple[int, int]]:
    """(out, in) of each."""
    return [(x.rows, x.columns) for x in layers]


def memory_bytes(config: DLQATJob, facts: ModelFacts, dtype: str = "float32") -> dict[str, int]:
    """Purpose -> bytes at the peak."""
    layers = quantized_layers(facts.linears, config)
    needed = memory_parts(
        facts,
        dtype=dtype,
        segments=config.segments,
        context=context_length(config, facts),
        batch=config.calibration_batch,
        streams=2 if config.block_epochs else 1,
        stages=4,
    )
    needed["held"] = 4 * int(
        layer_weights(layers)
    )  # a stage's weights or a start, beside the dense ones
    needed["training"] = training_bytes(config, facts)
    if config.block_epochs:  # not at the same time as other training
        trained = block_training_memory(facts, context_length(config, facts), ROUNDED_COPIES)
        needed["block training"] = max(0, trained - needed["training"])
    shared = ("runtime", "weights", "held", "training")
    return needed | memory_of_others(config.processes, needed, *shared)


def training_bytes(config: DLQATJob, facts: ModelFacts) -> int:
    """Bytes of the training alone: trained parameters, activations, logits."""
    if not any(stage in (*TRAINED, DLQATStage.LORA) for stage in config.stages):
        return 0
    layers = shapes(quantized_layers(facts.linears, config))
    trained = trainable(layers, config.rank, config.group_size)
    tokens, number = config.batch * config.length, 4 if config.precision == "float32" else 2
    deep = 1 + facts.blocks / ACTIVATION_COPIES if config.checkpointing else facts.blocks
    activations = tokens * facts.hidden * ACTIVATION_COPIES * deep * number
    logits = (1 + config.distil) * LOGIT_BYTES * tokens * facts.vocabulary
    return int(ADAM_BYTES * trained + activations + logits)


def require_training_memory(needed: dict[str, int], facts: ModelFacts) -> None:
    """Refuse a training that does not fit beside the model.

    Raises:
        ModelError: the model itself, or its calibration, does not fit.
        ConfigError: the training does not.
    """
    model = {purpose: size for purpose, size in needed.items() if purpose != "training"}
    available = memory_available()
    check_memory(model, available, facts.title)
    left = available - sum(model.values())
    if needed["training"] > left:
        raise ConfigError(
            "The training does not fit into memory.",
            f"It needs about {readable_bytes(needed['training'])} besides the model; "
            f"{readable_bytes(left)} are left for it.",
            "Lower the batch size or the sequence length, or enable gradient checkpointing.",
            field="batch",
        )


def require_training_text(config: DLQATJob, facts: ModelFacts) -> None:
    """Refuse training rows longer than the context, and a training text that is not available."""
    require_context(config.length, facts, "Training sequences", "length")
    if config.training_text != SAME:
        require_text(config.training_text, "calibration_text", "training_text")


def require_kept(config: DLQATJob) -> None:
    """Refuse to export a stage that the run does not make."""
    if config.kept not in config.stages:
        made = [s for s in config.stages if s not in NOT_QUANTIZED]
        raise ConfigError(
            f"{STAGE_LABELS[config.kept]} cannot be exported.",
            "This run does not make it.",
            f"Choose {', '.join(made) or 'a quantised stage'}.",
            field="keep",
        )
    if config.format != "dense" and not can_be_packed(config.kept):
        raise ConfigError(
            f"{STAGE_LABELS[config.kept]} cannot be exported as {config.format}.",
            "Its weights are rounded in another basis of their inputs, which the format does not "
            "know.",
            "Choose the format dense, or another stage.",
            field="keep",
        )


def require_blocks(config: DLQATJob, layers: list[LinearShape], facts: ModelFacts) -> None:
    """Refuse quantizers that know the blocks of LLaMA alone on other blocks.

    Raises:
        ConfigError: for the field `quantizers`.
    """
    for stage in config.stages:
        if stage in DECLARED_QUANTIZERS and DECLARED_QUANTIZERS[stage].facts.get("llama_only"):
            modules = (x.module for x in layers)
            require_llama_blocks(STAGE_LABELS[stage], facts.architecture, modules)


def export_requirements(
    config: DLQATJob, layers: list[LinearShape], facts: ModelFacts
) -> ExportRequirements:
    """What the export format has to hold."""
    return ExportRequirements(
        bits=config.bits,
        grid=config.grid,
        stored=config.stored,
        in_out=any(x.stored.transposed and x.stored.expert is None for x in layers),
        experts=any(".experts." in x.name for x in layers),
        whole=len(layers) == len(facts.linears),
        shapes=frozenset(shapes(layers)),
        architecture=facts.architecture,
    )


def hints(config: DLQATJob, layers: list[LinearShape]) -> tuple[str, ...]:
    """What other programs will not do with the export."""
    if config.format != "compressed-tensors":
        return ()
    return tuple(filter(None, [vllm_hint(config.bits, (x.name for x in layers))]))


def trained_parameters(
    config: DLQATJob, layers: list[LinearShape], facts: ModelFacts
) -> tuple[str, ...]:
    """How many parameters are trained, for people."""
    if not any(stage in TRAINED for stage in config.stages):
        return ()
    count = trainable(shapes(layers), config.rank, config.group_size, config.magnitude)
    share = f"{count / facts.parameters:.2%}".replace("%", " %")
    return (f"Trainable parameters: {count:,} ({share} of the model).",)
