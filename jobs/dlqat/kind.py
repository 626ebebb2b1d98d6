"""DL-QAT quantization as a kind of job: what a run needs, and its findings in words."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from backend.errors import ConfigError
from backend.export.formats import ExportRequirements, Format, check_format, experts_of, vllm_hint
from backend.export.sizes import growth, quantized_bytes
from backend.models import memory
from backend.models.facts import HEADS, ModelFacts
from backend.models.families.stored import GATE_UP, LinearShape, together
from backend.options import option
from backend.printable import readable_bytes
from backend.quantization import DECLARED_QUANTIZERS
from backend.quantization.config import (
    AUDIT_TOKENS,
    BLOCK_EPOCHS,
    CALIBRATION_BATCH,
    POST_TRAINING,
    STAGE_LABELS,
    TRAINED,
    DLQATConfig,
    DLQATStage,
    can_be_packed,
)
from backend.quantization.plan import (
    EMBEDDING_GROUP,
    QuantizationPlan,
    QuantSettings,
    plan,
    trainable,
)
from jobs.estimates import PhaseWork, decoded_bytes
from jobs.evaluation.kind import REPEATS, TIMED_TOKENS
from jobs.fields.models import resolve_model
from jobs.fields.text import (
    QualityConfig,
    TextConfig,
    check_quality,
    check_text,
    context_length,
    ending_products,
    require_text,
    sampled_bytes,
)
from jobs.fields.types import CorpusName, ModelConfig
from jobs.kind import JobConfig, KeyFigure, Kind, Requirements, StageStyle, Values
from jobs.limits import require_context
from jobs.metrics import BITS_PER_WEIGHT, PERPLEXITY
from jobs.profile.profiles import quantized_mix
from jobs.wording import StageComparison, apart, fixed

NAME, SAME = "dlqat", "same"
NOT_QUANTIZED = (DLQATStage.DENSE, DLQATStage.LORA)
QUANTIZED = [str(stage) for stage in STAGE_LABELS if stage not in NOT_QUANTIZED]
ExportedStage: TypeAlias = Literal["auto", *QUANTIZED]  # type: ignore[valid-type]
AUTO_BITS = 8  # of embedding and head
HEAD_NAMES = {name.removesuffix(".weight") for name in HEADS}
SEQUENTIAL_PASSES = 3  # more through a block: behind q, k and v, behind o, behind gate and up
ACTIVATION_COPIES = 40  # values of hidden size that one token keeps in one block
ROUNDED_COPIES = 12  # of a block's weights where they are rounded while they are trained
UNPACKED = "{} loads in transformers only with CompressedTensorsConfig(dequantize=True)."
HELPED = {
    "below": "",
    "above": " Training did not help on this model.",
    "": " The evaluation text is too short to tell whether training helped.",
}


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, JobConfig):
    """Model, texts and settings of the method."""

    training_text: CorpusName = option(SAME, "Training text")
    """same: the calibration text. A .jsonl file of instructions with answers: the loss is taken
    over the answers alone."""
    format: Format = option("compressed-tensors", "Export format")
    """compressed-tensors: plain transformers loads it. gptq, gptq_v2: for GPTQ kernels. slimscope:
    our own, for grids with offsets. dense: for any program, at the dense size."""
    packed: bool = option(True, "Time packed decoding", advanced=True)
    """Measure tokens per second of the dense model and of the exported one on packed weights, both
    in bfloat16. CPU only."""
    keep: ExportedStage = option("auto", "Stage kept", advanced=True)
    """The one that is exported. auto: the best on held-out text; of those that are not told apart,
    the simplest."""

    @property
    def candidates(self) -> list[str]:
        """The stages one of which is kept, from the simplest on: those the format can hold."""
        made = [stage for stage in self.stages if stage not in NOT_QUANTIZED]
        if self.keep != "auto":
            made = [stage for stage in made if stage == self.keep]
        return [stage for stage in made if self.format == "dense" or can_be_packed(stage)]


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
        title=facts.title,
        plan=planned,
        work=work(config, planned, facts),
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
    """The embedding and a head of its own, as far as the run quantizes them: transformers reads a
    packed head of any bits, but a packed embedding of those of the layers only."""
    bits, outside = embedding_bits(config), facts.embeddings
    if bits and config.embedding != "auto" and not outside:
        raise ConfigError(
            "The embedding of this model cannot be quantized.",
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
    return replace(
        choice, embedding=embedding, uniform_embedding=alike, head=own.bits if heads else 0
    )


def planned_layers(planned: QuantizationPlan, facts: ModelFacts) -> list[LinearShape]:
    """The layers that are quantized, in order."""
    return [x for x in facts.linears if planned.layers.get(x.name)]


def work(config: DLQATJob, planned: QuantizationPlan, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights = sum(x.weights for x in planned_layers(planned, facts))
    head, context = facts.vocabulary * facts.hidden, context_length(config, facts)
    calibration = weights * config.segments * context
    judging = (weights + head) * config.heldout_windows * context
    endings = ending_products(config, facts, config.windows, context)
    read = (weights + head) * config.windows * context + endings
    sampled = sampled_bytes(config, facts)
    gptq = quantizer_passes("gptq") * calibration * config.needs_gptq
    done = [
        PhaseWork("dense", read, "float32"),
        PhaseWork("dense", sampled, "memory"),
        PhaseWork("prepare", gptq, step=STAGE_LABELS[DLQATStage.GPTQ]),
        PhaseWork("prepare", calibration * config.needs_energies),
    ]
    tokens = config.steps * config.batch * config.accumulate * config.length
    for stage in config.stages:
        if stage in TRAINED or stage == DLQATStage.LORA:
            taught = (weights + head) * (stage == DLQATStage.DLQAT_KD)
            products = tokens * (3 * weights + 2 * head + taught)
        elif stage == DLQATStage.BLOCKS:  # the dense and the rounded block; training
            products = (2 + 3 * BLOCK_EPOCHS) * calibration
        elif stage == DLQATStage.LORA_GPTQ:
            products = quantizer_passes("gptq") * calibration
        else:  # that of GPTQ is in the phase "prepare"
            products = quantizer_passes(stage) * calibration * (stage != DLQATStage.GPTQ)
        label = STAGE_LABELS[stage]
        done += [
            PhaseWork(f"make {stage}", products, step=label),
            PhaseWork(f"make {stage}", 4.0 * weights, "memory", label),
            PhaseWork(f"judge {stage}", judging * (1 + (stage in TRAINED))),
            PhaseWork(f"measure {stage}", read, "float32"),
        ]
    timed = 2 * decoded_bytes(facts, TIMED_TOKENS * (1 + REPEATS)) * config.packed
    return [
        *done,
        PhaseWork(f"measure {config.stages[-1]}", sampled, "memory"),  # of the stage that is kept
        PhaseWork("audit", weights * min(config.segments * context, max(AUDIT_TOKENS, context))),
        PhaseWork("audit", 4.0 * weights * len(planned.stages), "memory"),
        PhaseWork("save", float(facts.bytes), "disk"),
        PhaseWork("speed", timed, "memory"),
    ]


def quantizer_passes(name: str) -> int:
    """Passes of a post-training quantizer over the calibration text."""
    facts = DECLARED_QUANTIZERS[name].facts
    if facts.get("needs", "gram") == "nothing":
        return 0
    return 2 + SEQUENTIAL_PASSES * bool(facts.get("sequential"))


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
    needed["held"] = 4 * sum(x.weights for x in planned_layers(planned, facts))
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
    return int(memory.ADAM_BYTES * trained + activations + logits)


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
            f"Choose {', '.join(made) or 'a quantized stage'}.",
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
        scale_dtype=config.stored,
        in_out=any(x.stored.transposed and x.stored.expert is None for x in layers),
        experts=experts,
        all_quantized=len(layers) == len(facts.linears),
        shapes=frozenset((x.rows // (2 if x.name in joined else 1), x.columns) for x in layers),
        architecture=facts.architecture,
    )


def verdict(stages: StageComparison) -> str:
    """In words, whether the method helped on this model."""
    trained = next((s for s in TRAINED if s in stages.perplexity), None)
    rival = best_untrained(stages.perplexity)
    if trained is None or rival is None:
        return ""
    fair = [s for s in (DLQATStage.BLOCKS, DLQATStage.LORA_GPTQ) if s in stages.perplexity]
    named = {stage: STAGE_LABELS[stage] for stage in (rival, *fair)}
    text = f"{STAGE_LABELS[trained]} {stages.clause(trained, named)}."
    if DLQATStage.LORA in stages.perplexity and trained == DLQATStage.DLQAT:
        plain, value = stages.perplexity[DLQATStage.LORA], stages.perplexity[DLQATStage.DLQAT]
        costs = stages.order(DLQATStage.DLQAT, DLQATStage.LORA) == "above"
        rise = f"raises it by {fixed(100 * (value / plain - 1), 1)} %"
        cost = rise if costs else "changes nothing measurable"
        text += (
            f" The same training without quantization reaches {fixed(plain, 2)}: "
            f"rounding itself {cost}."
        )
    dense = DLQATStage.DENSE in stages.perplexity
    if dense and stages.order(trained, DLQATStage.DENSE) == "below":
        text += " It is below that of the dense model because it was trained on such text."
    return text + HELPED[stages.order(trained, rival)]


def best_untrained(perplexity: Mapping[str, float]) -> str | None:
    """The post-training quantizer of the run with the lowest perplexity; None without one."""
    return min(
        (s for s in POST_TRAINING if s in perplexity), key=perplexity.__getitem__, default=None
    )


def key_figure(values: Values, kept: str) -> KeyFigure | None:
    """Bits a weight of the kept stage, and what they cost in perplexity: with the best
    post-training quantizer, with training, and as kept."""
    dense = values.get((DLQATStage.DENSE, PERPLEXITY))
    if dense is None or not {(kept, BITS_PER_WEIGHT), (kept, PERPLEXITY)} <= values.keys():
        return None
    trained = next((s for s in TRAINED if (s, PERPLEXITY) in values), kept)
    rival = best_untrained({s: value for (s, name), value in values.items() if name == PERPLEXITY})
    stages = [*dict.fromkeys((rival or kept, trained, kept))]
    figures = apart([dense, *(values[s, PERPLEXITY] for s in stages)])
    named = ["dense", *(f"with {STAGE_LABELS[s]}" for s in stages)]
    return KeyFigure(
        f"{fixed(values[kept, BITS_PER_WEIGHT], 2)} bits",
        "per weight, down from 16",
        f"Perplexity {', '.join(map(' '.join, zip(figures, named, strict=True)))}.",
    )


STYLES = {
    "dense": StageStyle("gray", main=True),
    "rtn": StageStyle("vermillion", main=True),
    "gptq": StageStyle("purple", main=True),
    "block-wise": StageStyle("green", "dot", main=True),
    "m-only": StageStyle("pink"),
    "lora-only": StageStyle("pink", "dot"),
    "dlqat": StageStyle("blue", main=True),
    "dlqat-kd": StageStyle("blue", "dot"),
    "lora": StageStyle("green"),
    "lora-gptq": StageStyle("brown", "dot"),
}
KIND = Kind(
    name=NAME,
    title="DL-QAT quantization",
    summary="Fine-tune while rounding to a few bits, with one learned scale per group.",
    config=DLQATJob,
    requirements=requirements,
    plan=QuantizationPlan,
    run="jobs.dlqat.run:run",
    order=20,
    main_fields=("bits", "group_size", "embedding"),
    compresses=True,
    saves="model",
    packs=True,
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=DLQATStage.DLQAT,
    verdict=verdict,
    remedy="more bits, smaller groups, or more training than a quick look has",
    key_figure=key_figure,
    recipes={
        "DL-QAT": {},
        "DL-QAT beside its rivals": {"stages": "rtn, gptq, dlqat, lora"},
        "DL-QAT distilled": {"stages": "dlqat-kd"},
        "GPTQ": {"stages": "gptq"},
        "GPTQ by layer": {"stages": "gptq", "allocation": "budget:loss 3%"},
        "AWQ": {"stages": "awq", "format": "dense"},
        "HQQ": {"stages": "hqq"},
        "Block-wise": {"stages": "block-wise"},
    },
    notes={
        "DL-QAT": "Low-rank updates trained inside the rounding, from what GPTQ gives.",
        "DL-QAT beside its rivals": "Rounding to nearest, GPTQ and LoRA in 16 bits, on the "
        "same text.",
        "DL-QAT distilled": "Trained on the dense model's distributions.",
        "GPTQ": "Post-training: errors are compensated column by column.",
        "GPTQ by layer": "More bits where a sensitivity profile says that they count.",
        "AWQ": "Post-training: channels with large inputs are scaled up before rounding.",
        "HQQ": "Post-training, without calibration text.",
        "Block-wise": "Weights and grids of a block trained together.",
    },
    presets={
        "quick look": {
            "segments": 12,
            "context": 256,
            "windows": 8,
            "steps": 10,
            "batch": 2,
        },
        "default": {},
        "thorough": {"segments": 64, "windows": 32, "steps": 200},
    },
)
