"""What a DL-QAT run needs before it starts: FLOPs, memory, and what is refused."""

from dataclasses import replace

from backend.errors import ConfigError
from backend.export.formats import ExportRequirements, check_format, experts_of, vllm_hint
from backend.export.sizes import growth, quantized_bytes
from backend.models import memory
from backend.models.facts import HEADS, ModelFacts
from backend.models.families.stored import EXPERT, GATE_UP, LinearShape, together
from backend.printable import readable_bytes
from backend.quantization import DECLARED_QUANTIZERS, DECLARED_RANGE_SEARCHES
from backend.quantization.config import (
    AUDIT_TOKENS,
    BLOCK_EPOCHS,
    CALIBRATION_BATCH,
    STAGE_LABELS,
    TRAINED,
    DLQATStage,
)
from backend.quantization.plan import (
    EMBEDDING_GROUP,
    QuantizationPlan,
    QuantSettings,
    plan,
    trainable,
)
from backend.registry import Declarations
from jobs.dlqat.config import NOT_QUANTIZED, SAME, DLQATJob
from jobs.evaluation.kind import REPEATS, TIMED_TOKENS
from jobs.fields.models import resolve_model
from jobs.fields.quality import DECODED_TOKEN_COST, check_quality, ending_flops, sample_flops
from jobs.fields.text import check_text, context_length, require_text
from jobs.kind import Requirements
from jobs.limits import require_context
from jobs.profile.profiles import quantized_mix
from jobs.runtime.duration import ADAM_BYTES, GRAM_SHARE, STATISTICS_FLOPS

AUTO_BITS = 8  # of embedding and head
HEAD_NAMES = {name.removesuffix(".weight") for name in HEADS}
SEQUENTIAL_PASSES = 3  # more through a block: behind q, k and v, behind o, behind gate and up
FLOAT32_COST = 2.0  # of float32 products over bfloat16 ones, where those are used
FAKE_QUANT_FLOPS = 300.0  # of one weight: its code is computed again, forward and backward
ACTIVATION_COPIES = 40  # values of hidden size that one token keeps in one block
ROUNDED_COPIES = 12  # of a block's weights where they are rounded while they are trained
UNPACKED = "{} loads in transformers only with CompressedTensorsConfig(dequantize=True)."


def requirements(config: DLQATJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    mix = quantized_mix(config, config.overrides, embedding_format(config))
    outside = embedding_layers(config, facts)
    bits = next((mix[x.name].bits for x in outside if x.name in mix), embedding_bits(config))
    planned = plan(config, facts, config.format, outside, bits, mix)
    layers = planned_layers(planned, facts)
    warnings = check_text(config, facts)
    warnings += check_quality(config, context_length(config, facts))
    packed = config.format == "compressed-tensors"
    if packed and any(group.grid == "zero-point" for group in planned.groups):
        warnings += (UNPACKED.format("An asymmetric grid"),)
    elif packed and planned.embedding and facts.embeddings[0].name in planned.embedding.layers:
        warnings += (UNPACKED.format("A packed embedding"),)
    require_context(config.length, facts, "Training sequences", "length")
    if config.training_text != SAME:
        require_text(config.training_text, "calibration_text", "training_text")
    require_kept(config)
    for group in planned.groups:
        needed_format = export_requirements(config, group, planned, facts)
        check_format(config.format, with_embedding(needed_format, planned, group))
    needed = memory_bytes(config, planned, facts)
    require_training_memory(needed, facts)
    sizes = facts.bytes, quantized_bytes(facts, planned, config.format, config.stored)
    notes: tuple[str, ...] = embedding_notes(planned, facts, config)
    if any(stage in TRAINED for stage in config.stages):
        count = trainable_parameters(config, planned, facts, DLQATStage.DLQAT)
        share = f"{count / facts.parameters:.2%}".replace("%", " %")
        notes += (f"Trainable parameters: {count:,} ({share} of the model).",)
    if packed:
        hints = (vllm_hint(group.bits, (x.name for x in layers)) for group in planned.groups)
        notes += tuple(filter(None, hints))
    return Requirements(
        model=config.model,
        title=facts.title,
        plan=planned,
        flops=flops_by_phase(config, planned, facts),
        memory=needed,
        warnings=warnings,
        notes=notes,
        open_ended=bool(config.harness_tasks),
        sizes=(*sizes, facts.parameters),
        field_warnings=larger(config, planned, facts, sizes),
    )


def larger(
    config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts, sizes: tuple[int, int]
) -> dict[str, str]:
    """A warning of a model larger than its source, beside the field that would make it smaller."""
    if planned.embedding and len(planned.embedding.layers) == len(facts.embeddings):
        field, do = "bits", "Fewer bits make it smaller."
    elif config.format == "dense":
        field, do = "format", "A packed format makes it smaller."
    else:
        field, do = "embedding", "Embedding and head are a large part of it."
        if facts.embeddings:
            small = plan(config, facts, "slimscope", facts.embeddings, AUTO_BITS, planned.widths)
            size = quantized_bytes(facts, small, "slimscope", config.stored)
            do = f"In 8 bits, with the export format slimscope, it is {readable_bytes(size)}."
    why = growth(*sizes, do)
    return {field: why} if why else {}


def embedding_notes(
    planned: QuantizationPlan, facts: ModelFacts, config: DLQATJob
) -> tuple[str, ...]:
    """What becomes of embedding and head, where that is not what the setting says at once."""
    if planned.embedding is None:
        return ()
    named = " and ".join(planned.embedding.layers)
    told = f"{named}: {planned.embedding.bits} bits, rounded to nearest."
    if len(planned.embedding.layers) < len(facts.embeddings):
        told += (
            f" The embedding stays in {config.stored}: transformers reads a packed one only in the "
            "bits of the layers."
        )
    return (told,)


def embedding_bits(config: DLQATJob) -> int:
    """Bits of embedding and head; 0: they keep the stored precision."""
    if config.embedding == "auto":
        return AUTO_BITS if config.format == "slimscope" else 0
    return 0 if config.embedding == "stored" else int(config.embedding)


def embedding_format(config: DLQATJob) -> str:
    """What a budget holds embedding and head at; empty: it is for them, too."""
    if config.embedding == "auto" and config.format == "slimscope":
        return ""
    return f"int{bits}-g{EMBEDDING_GROUP}" if (bits := embedding_bits(config)) else "dense"


def embedding_layers(config: DLQATJob, facts: ModelFacts) -> tuple[LinearShape, ...]:
    """The embedding and a head of its own, as far as the run quantises them: transformers reads a
    packed head of any bits, but a packed embedding of those of the layers only."""
    bits, outside = embedding_bits(config), facts.embeddings
    if bits and config.embedding != "auto" and not outside:
        raise ConfigError(
            "The embedding of this model cannot be quantised.",
            "It has none of the names that are known.",
            "Choose stored.",
            "embedding",
        )
    head_alone = config.format == "compressed-tensors" and bits not in (0, config.bits)
    return outside[1:] if head_alone and len(outside) > 1 else outside


def with_embedding(
    choice: ExportRequirements, planned: QuantizationPlan, group: QuantSettings
) -> ExportRequirements:
    """What the format has to hold of embedding and head besides the layers."""
    if (own := planned.embedding) is None:
        return choice
    heads = [name for name in own.layers if name in HEAD_NAMES]
    alike = (own.bits, own.group_size, own.grid) == (group.bits, group.group_size, group.grid)
    embedding = own.bits if len(heads) < len(own.layers) else 0
    return replace(choice, embedding=embedding, alike=alike, head=own.bits if heads else 0)


def planned_layers(planned: QuantizationPlan, facts: ModelFacts) -> list[LinearShape]:
    """The layers that are quantized, in order."""
    return [x for x in facts.linears if planned.layers.get(x.name)]


def flops_by_phase(
    config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts
) -> dict[str, float]:
    """Floating-point operations of each phase, in order: the basis of estimate and progress."""
    layers = planned_layers(planned, facts)
    weights, head = layer_weights(layers), facts.vocabulary * facts.hidden
    context = context_length(config, facts)
    tokens = config.segments * context
    evaluation = FLOAT32_COST * 2 * (weights + head) * config.windows * context
    samples = sample_flops(config, facts)
    samples += FLOAT32_COST * ending_flops(config, facts, config.windows, context)
    forward = 2 * weights * tokens
    prepare = weights + forward * config.needs_energies
    if config.needs_gptq:
        prepare += quantizer_flops("gptq", config, layers, tokens)
    judging = 2 * (weights + head) * config.heldout_windows * context
    flops = {"dense": evaluation + samples, "prepare": prepare}
    for stage in config.stages:
        judged = {DLQATStage.LORA: 2}.get(stage, int(stage in TRAINED))  # before and after training
        flops[f"make {stage}"] = stage_flops(stage, config, layers, head, tokens)
        flops[f"make {stage}"] += judged * judging
        flops[f"judge {stage}"] = judging
    for number, stage in enumerate(config.stages):  # samples are of the stage that is kept
        flops[f"measure {stage}"] = evaluation + samples * (number == len(config.stages) - 1)
    statistics = STATISTICS_FLOPS * weights * len(planned.stages)
    experts = any(EXPERT.fullmatch(x.name) for x in layers)
    audited = tokens if experts else min(tokens, max(AUDIT_TOKENS, context))
    flops["audit"] = 2 * weights * audited + gram_flops(layers, audited) + statistics
    flops["save"] = 100 * weights
    if planned.embedding:
        outside = sum(x.weights for x in facts.embeddings)
        flops["save"] += declared_flops(DECLARED_RANGE_SEARCHES, planned.embedding.space) * outside
    decoded = DECODED_TOKEN_COST * TIMED_TOKENS * (1 + REPEATS)
    flops["speed"] = 2 * 2 * (weights + head) * decoded * config.packed
    return flops


def stage_flops(
    stage: str, config: DLQATJob, layers: list[LinearShape], head: int, tokens: int
) -> float:
    """Floating-point operations of making a stage. `head`: weights of the output layer; `tokens`:
    of the calibration text."""
    weights = layer_weights(layers)
    if stage == DLQATStage.GPTQ:  # computed in the phase "prepare"
        return declared_flops(DECLARED_QUANTIZERS, "gptq") * weights
    if stage == DLQATStage.BLOCKS:
        steps = BLOCK_EPOCHS * config.segments
        passes = 2 + 3 * BLOCK_EPOCHS  # of the dense and the rounded block; training
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
    return 2.0 * sum(x.columns**2 for x in layers) * GRAM_SHARE * tokens


def declared_flops(declarations: Declarations, name: str) -> float:
    """Floating-point operations per weight, as the decorator of an entry states them."""
    return float(declarations[name].facts.get("flops", 0.0))


def layer_weights(layers: list[LinearShape]) -> float:
    return float(sum(x.weights for x in layers))


def trainable_parameters(
    config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts, stage: str
) -> int:
    """Number of parameters that a stage trains."""
    low_rank, magnitude = config.trains(stage)
    sizes = [
        (x.rows, x.columns, of.group_size)
        for x in facts.linears
        if (of := planned.layers.get(x.name))
    ]
    return trainable(sizes, config.rank * low_rank, magnitude)


def memory_bytes(config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts) -> dict[str, int]:
    """Purpose -> bytes at the peak."""
    by_block = DLQATStage.BLOCKS in config.stages
    needed = memory.memory_parts(
        facts,
        segments=config.segments,
        context=context_length(config, facts),
        batch=CALIBRATION_BATCH,
        streams=2 if by_block else 1,
        stages=4,
    )
    # a stage's weights or a start, beside the dense ones
    needed["held"] = 4 * int(layer_weights(planned_layers(planned, facts)))
    if planned.embedding:  # codes, and what they stand for
        needed["held"] += 5 * sum(x.weights for x in facts.embeddings)
    needed["training"] = training_bytes(config, planned, facts)
    if by_block:  # not at the same time as other training
        trained = memory.block_training_memory(facts, context_length(config, facts), ROUNDED_COPIES)
        needed["block training"] = max(0, trained - needed["training"])
    return needed


def training_bytes(config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts) -> int:
    """Bytes of the training alone: trained parameters, activations, logits."""
    if not any(stage in (*TRAINED, DLQATStage.LORA) for stage in config.stages):
        return 0
    trained = trainable_parameters(config, planned, facts, DLQATStage.DLQAT)
    tokens, number = config.batch * config.length, 4 if config.precision == "float32" else 2
    deep = 1 + facts.blocks / ACTIVATION_COPIES if config.checkpointing else facts.blocks
    activations = tokens * facts.hidden * ACTIVATION_COPIES * deep * number
    # the logits, their gradient, and those of a teacher
    logits = (2 + (DLQATStage.DLQAT_KD in config.stages)) * number * tokens * facts.vocabulary
    return int(ADAM_BYTES * trained + activations + logits)


def require_training_memory(needed: dict[str, int], facts: ModelFacts) -> None:
    """Raise `ModelError` if the model or its calibration does not fit into memory, `ConfigError`
    if the training does not fit beside it."""
    model = {purpose: size for purpose, size in needed.items() if purpose != "training"}
    available = memory.memory_available()
    memory.check_memory(model, available, facts.title)
    left = available - sum(model.values())
    if needed["training"] > left:
        raise ConfigError(
            "The training does not fit into memory.",
            f"It needs about {readable_bytes(needed['training'])} besides the model; "
            f"{readable_bytes(left)} are left for it.",
            "Lower the batch size or the sequence length, or enable gradient checkpointing.",
            field="batch",
        )


def require_kept(config: DLQATJob) -> None:
    """Refuse a run without a stage to keep, or without the evidence to choose one by."""
    made = [s for s in config.stages if s not in NOT_QUANTIZED]
    wanted = next(iter(made), DLQATStage.DLQAT) if config.keep == "auto" else config.keep
    if wanted not in made:
        raise ConfigError(
            f"{STAGE_LABELS[wanted]} cannot be exported.",
            "This run does not make it.",
            f"Choose {', '.join(made) or 'a quantised stage'}.",
            field="keep",
        )
    if not config.candidates:
        raise ConfigError(
            f"{STAGE_LABELS[wanted]} cannot be exported as {config.format}.",
            "Its weights are rounded in another basis of their inputs, which the format does not "
            "know.",
            "Choose the format dense, or another stage.",
            field="keep",
        )
    if len(config.candidates) > 1 and not config.holdout:
        raise ConfigError(
            "There is nothing to choose the stage to export by.",
            "No text is held out.",
            "Hold out a share, or choose the stage.",
            field="holdout",
        )


def export_requirements(
    config: DLQATJob, group: QuantSettings, planned: QuantizationPlan, facts: ModelFacts
) -> ExportRequirements:
    """What the export format has to hold."""
    layers, most = planned_layers(planned, facts), max(planned.groups, key=lambda x: len(x.layers))
    joined = {x.name for x in layers if together(x.name).endswith(f"experts.{GATE_UP}")}
    experts = experts_of(
        facts.support.separate,
        {x.name for x in facts.linears},
        {*most.layers},
        {x.name for x in layers}.difference(most.layers),
    )
    return ExportRequirements(
        bits=group.bits,
        grid=group.grid,
        stored=config.stored,
        in_out=any(x.stored.transposed and x.stored.expert is None for x in layers),
        experts=experts,
        whole=len(layers) == len(facts.linears),
        shapes=frozenset((x.rows // (2 if x.name in joined else 1), x.columns) for x in layers),
        architecture=facts.architecture,
    )
