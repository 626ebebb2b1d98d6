"""The kind `dlqat`: config, requirements and verdict of DL-QAT quantization runs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from backend.budget import PREFIX, budget_of
from backend.errors import ConfigError
from backend.export.formats import ExportRequirements, Format, check_format, experts_of, vllm_hint
from backend.export.sizes import growth_warning, quantized_bytes
from backend.models import memory
from backend.models.facts import HEADS, ModelFacts
from backend.models.families.stored import GATE_UP, LinearShape, tensor_name
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
    AUTO,
    AUTO_FORMATS,
    EMBEDDING_GROUP,
    QuantizationPlan,
    QuantSettings,
    trainable,
)
from backend.quantization.plan import plan as make_plan
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
from jobs.kind import (
    DiskSpace,
    JobConfig,
    KeyFigure,
    Kind,
    Requirements,
    StageStyle,
    Values,
    perplexities,
    reached,
    rival_figure,
    strongest,
)
from jobs.limits import require_context, run_memory
from jobs.metrics import BITS_PER_WEIGHT
from jobs.profile.profiles import quantized_mix, replaced_fields
from jobs.wording import StageComparison, fixed

NAME, SAME = "dlqat", "same"
NOT_QUANTIZED = (DLQATStage.DENSE, DLQATStage.LORA)
STAGE_NAMES = STAGE_LABELS | {DLQATStage.BLOCKS: "block-wise training"}  # in a sentence
QUANTIZED = [str(stage) for stage in STAGE_LABELS if stage not in NOT_QUANTIZED]
ExportedStage: TypeAlias = Literal["auto", *QUANTIZED]  # type: ignore[valid-type]
LARGE_EMBEDDING = 1 / 3  # share of the file from which an embedding is stored in 8 bits
AUTO_BITS = 8  # default width of embedding and head in the format slimscope
HEAD_NAMES = {name.removesuffix(".weight") for name in HEADS}
SEQUENTIAL_PASSES = 3  # extra passes through a block: after q, k, v; after o; after gate and up
CHECKPOINT_BYTES = 24  # per trained parameter: its value and two moments, twice
SOLVER_COPIES = 3  # float32 copies of a block: its weights, starts, and rounded weights
GRID_BYTES = 8  # scale and zero-point of a group
GRID_FACTOR = 1.1  # disk space of codes or starts with their scales and zero-points
ROUNDED_COPIES = 12  # copies of a block's weights during training with rounding
UNPACKED = "{} loads in transformers only with CompressedTensorsConfig(dequantize=True)."
HELPED = {
    "below": "",
    "above": " Training did not help on this model.",
    "": " The evaluation text is too short to decide if training helped.",
}


class DLQATJob(ModelConfig, DLQATConfig, TextConfig, QualityConfig, JobConfig):
    """Model, texts and settings of the method."""

    training_text: CorpusName = option(SAME, "Training text")
    """same: the calibration text. In a .jsonl file of instructions with answers, only the answers
    are trained on."""
    format: Format | Literal["auto"] = option(AUTO, "Export format")
    """auto: slimscope, with the embedding in 8 bits, where it would be a third of the file or more,
    else compressed-tensors. compressed-tensors: loads in plain transformers. gptq, gptq_v2: for
    GPTQ kernels. slimscope: supports grids with offsets. dense: for any program, without a smaller
    file."""
    packed: bool = option(True, "Time packed decoding", advanced=True)
    """Measure tokens per second of the dense model and of the exported packed model, both in
    bfloat16. CPU only."""
    keep: ExportedStage = option("auto", "Stage to keep", advanced=True)
    """Stage to export. auto: the best on held-out text; among ties, the simplest."""

    @property
    def candidates(self) -> list[str]:
        """Stages that may be exported, the simplest first: those that the format can hold."""
        stages = [stage for stage in self.stages if stage not in NOT_QUANTIZED]
        if self.keep != "auto":
            stages = [stage for stage in stages if stage == self.keep]
        return [stage for stage in stages if self.format == "dense" or can_be_packed(stage)]


def requirements(config: DLQATJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    config = config.model_copy(update={"format": export_format(config, facts)})
    mix = quantized_mix(config, config.overrides, embedding_format(config))
    embeddings = embedding_layers(config, facts)
    bits = next((mix[x.name].bits for x in embeddings if x.name in mix), embedding_bits(config))
    plan = make_plan(config, facts, config.format, embeddings, bits, mix)
    layers = planned_layers(plan, facts)
    warnings = check_text(config, facts)
    warnings += check_quality(config, context_length(config, facts))
    packed = config.format == "compressed-tensors"
    if packed and any(group.grid == "zero-point" for group in plan.groups):
        warnings += (UNPACKED.format("An asymmetric grid"),)
    elif packed and plan.embedding and facts.embeddings[0].name in plan.embedding.layers:
        warnings += (UNPACKED.format("A packed embedding"),)
    require_context(config.length, facts, "Training sequences", "length")
    if config.training_text != SAME:
        require_text(config.training_text, "calibration_text", "training_text")
    require_exportable_stage(config)
    for group in plan.groups:
        export_needs = export_requirements(config, group, plan, facts)
        check_format(plan.format, with_embedding(export_needs, plan, group))
    device = run_memory(config.device)
    dtype = "float32" if config.precision == "float32" else device.dtype(facts.dtype)
    streamed, memory_parts = memory_bytes(config, plan, facts, device, dtype)
    warnings += (memory.streaming_warning(device),) * streamed
    sizes = facts.bytes, quantized_bytes(facts, plan, config.format, config.saved_precision)
    notes: tuple[str, ...] = embedding_notes(plan, facts, config)
    if any(stage in TRAINED for stage in config.stages):
        count = trainable_parameters(config, plan, facts, DLQATStage.DLQAT)
        share = f"{count / facts.parameters:.2%}".replace("%", " %")
        notes += (f"Trainable parameters: {count:,} ({share} of the model).",)
    if packed:
        hints = (vllm_hint(group.bits, (x.name for x in layers)) for group in plan.groups)
        notes += tuple(filter(None, hints))
    return Requirements(
        title=facts.title,
        plan=plan,
        work=work(config, plan, facts),
        memory=memory_parts,
        device=device,
        disk=disk_space(config, plan, facts),
        warnings=warnings,
        notes=notes,
        open_ended=bool(config.harness_tasks),
        sizes=(*sizes, facts.parameters),
        field_warnings={
            **replaced_fields(config.allocation, "bits", "group_size"),
            **size_warning(config, plan, facts, sizes),
        },
    )


def export_format(config: DLQATJob, facts: ModelFacts) -> str:
    """Return the export format. auto: the one that holds the embedding in 8 bits if it would take
    `LARGE_EMBEDDING` of the file or more in stored precision."""
    if config.format != AUTO:
        return config.format
    holds_embedding, loads_everywhere = AUTO_FORMATS
    if config.embedding != "auto":
        return loads_everywhere
    embedding = memory.WEIGHT_BYTES[config.saved_precision] * sum(
        x.weights for x in facts.embeddings
    )
    try:
        mix = quantized_mix(config, config.overrides, "dense")
    except ConfigError:  # the budget is too small for an embedding in stored precision
        return holds_embedding
    plan = make_plan(config, facts, loads_everywhere, (), 0, mix)
    saved = quantized_bytes(facts, plan, loads_everywhere, config.saved_precision)
    return holds_embedding if embedding >= LARGE_EMBEDDING * saved else loads_everywhere


def size_warning(
    config: DLQATJob, plan: QuantizationPlan, facts: ModelFacts, sizes: tuple[int, int]
) -> dict[str, str]:
    """Warn if the saved model is larger than its source: field that would shrink it -> warning."""
    if plan.embedding and len(plan.embedding.layers) == len(facts.embeddings):
        field, advice = "bits", "Fewer bits make it smaller."
    elif config.format == "dense":
        field, advice = "format", "A packed format makes it smaller."
    else:
        field, advice = "embedding", "Embedding and head are a large part of the file."
        if facts.embeddings:
            smallest_plan = make_plan(
                config, facts, "slimscope", facts.embeddings, AUTO_BITS, plan.widths
            )
            smallest_bytes = quantized_bytes(
                facts, smallest_plan, "slimscope", config.saved_precision
            )
            size = readable_bytes(smallest_bytes)
            advice = f"In 8 bits, with the export format slimscope: {size}."
    warning = growth_warning(*sizes, advice)
    return {field: warning} if warning else {}


def embedding_notes(plan: QuantizationPlan, facts: ModelFacts, config: DLQATJob) -> tuple[str, ...]:
    """Describe the format of embedding and head if the run quantizes them."""
    if plan.embedding is None:
        return ()
    names = " and ".join(plan.embedding.layers)
    note = f"{names}: {plan.embedding.bits} bits, rounded to nearest."
    if len(plan.embedding.layers) < len(facts.embeddings):
        note += (
            f" The embedding stays in {config.saved_precision}: transformers loads a packed "
            "embedding only at the width of the layers."
        )
    return (note,)


def embedding_bits(config: DLQATJob) -> int:
    """Return the bits of embedding and head; 0 if they keep their precision."""
    if config.embedding == "auto":
        return AUTO_BITS if config.format == "slimscope" else 0
    return 0 if config.embedding == "dense" else int(config.embedding)


def embedding_format(config: DLQATJob) -> str:
    """Return the fixed format of embedding and head in a budget; empty if the budget includes
    them. Bits are those of the layers, so they leave the embedding out."""
    budget = budget_of(config.allocation)
    in_bits = budget is not None and budget.kind == "bits"
    if config.embedding == "auto" and config.format == "slimscope" and not in_bits:
        return ""
    return f"int{bits}-g{EMBEDDING_GROUP}" if (bits := embedding_bits(config)) else "dense"


def embedding_layers(config: DLQATJob, facts: ModelFacts) -> tuple[LinearShape, ...]:
    """Return the embedding and the untied head, as far as the run quantizes them.

    transformers loads a packed head of any width, but a packed embedding only at the width of the
    layers.
    """
    bits, embeddings = embedding_bits(config), facts.embeddings
    if bits and config.embedding != "auto" and not embeddings:
        raise ConfigError(
            "The embedding of this model cannot be quantized.",
            "Its name is unknown.",
            "Choose stored.",
            "embedding",
        )
    only_head = config.format == "compressed-tensors" and bits not in (0, config.bits)
    return embeddings[1:] if only_head and len(embeddings) > 1 else embeddings


def with_embedding(
    layers: ExportRequirements, plan: QuantizationPlan, group: QuantSettings
) -> ExportRequirements:
    """Add the requirements of embedding and head to those of the layers."""
    embedding = plan.embedding
    if embedding is None:
        return layers
    heads = [name for name in embedding.layers if name in HEAD_NAMES]
    same_format = (embedding.bits, embedding.group_size, embedding.grid) == (
        group.bits,
        group.group_size,
        group.grid,
    )
    embedding_width = embedding.bits if len(heads) < len(embedding.layers) else 0
    return replace(
        layers,
        embedding=embedding_width,
        uniform_embedding=same_format,
        head=embedding.bits if heads else 0,
    )


def planned_layers(plan: QuantizationPlan, facts: ModelFacts) -> list[LinearShape]:
    """Return the quantized layers, in order."""
    return [x for x in facts.linears if plan.layers.get(x.name)]


def work(config: DLQATJob, plan: QuantizationPlan, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights = sum(x.weights for x in planned_layers(plan, facts))
    head, context = facts.vocabulary * facts.hidden, context_length(config, facts)
    calibration = weights * config.segments * context
    heldout = (weights + head) * config.heldout_windows * context
    endings = ending_products(config, facts, config.windows, context)
    evaluation = (weights + head) * config.windows * context + endings
    sampled = sampled_bytes(config, facts)
    gptq = quantizer_passes("gptq") * calibration * config.needs_gptq
    phases = [
        PhaseWork("dense", evaluation, "float32"),
        PhaseWork("dense", sampled, "memory"),
        PhaseWork("prepare", gptq, step=STAGE_LABELS[DLQATStage.GPTQ]),
        PhaseWork("prepare", calibration * config.needs_energies),
    ]
    tokens = config.steps * config.batch * config.accumulate * config.length
    for stage in config.stages:
        if stage in TRAINED or stage == DLQATStage.LORA:
            teacher = (weights + head) * (stage == DLQATStage.DLQAT_KD)
            products = tokens * (3 * weights + 2 * head + teacher)
        elif stage == DLQATStage.BLOCKS:  # dense pass, rounded pass, training
            products = (2 + 3 * BLOCK_EPOCHS) * calibration
        elif stage == DLQATStage.LORA_GPTQ:
            products = quantizer_passes("gptq") * calibration
        else:  # GPTQ runs in the phase "prepare"
            products = quantizer_passes(stage) * calibration * (stage != DLQATStage.GPTQ)
        label = STAGE_LABELS[stage]
        phases += [
            PhaseWork(f"make {stage}", products, step=label),
            PhaseWork(f"make {stage}", 4.0 * weights, "memory", label),
            PhaseWork(f"judge {stage}", heldout * (1 + (stage in TRAINED))),
            PhaseWork(f"measure {stage}", evaluation, "float32"),
        ]
    timed_bytes = 2 * decoded_bytes(facts, TIMED_TOKENS * (1 + REPEATS)) * config.packed
    return [
        *phases,
        PhaseWork(f"measure {config.stages[-1]}", sampled, "memory"),  # of the kept stage
        PhaseWork("audit", weights * min(config.segments * context, max(AUDIT_TOKENS, context))),
        PhaseWork("audit", 4.0 * weights * len(plan.stages), "memory"),
        PhaseWork("save", float(facts.bytes), "disk"),
        PhaseWork("speed", timed_bytes, "memory"),
    ]


def quantizer_passes(name: str) -> int:
    """Return the number of passes of a post-training quantizer over the calibration text."""
    facts = DECLARED_QUANTIZERS[name].facts
    if facts.get("needs", "gram") == "nothing":
        return 0
    return 2 + SEQUENTIAL_PASSES * bool(facts.get("sequential"))


def groups(plan: QuantizationPlan, facts: ModelFacts) -> int:
    """Return the number of groups with a scale over all layers."""
    layers = ((x, plan.settings(x.name)) for x in planned_layers(plan, facts))
    return sum(x.weights // (settings.group_size or x.columns) for x, settings in layers)


def trainable_parameters(
    config: DLQATJob, plan: QuantizationPlan, facts: ModelFacts, stage: str
) -> int:
    """Return the number of parameters that a stage trains."""
    low_rank, magnitude = config.trains(stage)
    sizes = [
        (x.rows, x.columns, settings.group_size)
        for x in facts.linears
        if (settings := plan.layers.get(x.name))
    ]
    return trainable(sizes, config.rank * low_rank, magnitude)


def memory_bytes(
    config: DLQATJob,
    plan: QuantizationPlan,
    facts: ModelFacts,
    device: memory.DeviceMemory,
    dtype: str,
) -> tuple[bool, dict[str, int]]:
    """Return True if the model is streamed, and the peak memory in bytes by purpose: that of the
    phase that needs most. `dtype` is that of the weights.

    A streamed model has one set of weights in memory, or one block: the dense weights, the starts
    of training, or those of a finished stage."""
    whole, streamed = (
        max(
            _phases(config, plan, facts, device, dtype, is_streamed),
            key=lambda parts: sum(parts.values()),
        )
        for is_streamed in (False, True)
    )
    whole_bytes, can_stream = sum(whole.values()), not facts.support.stream and not facts.quantized
    is_tight = whole_bytes > memory.STREAMING_THRESHOLD * device.free
    if is_tight and can_stream and sum(streamed.values()) < whole_bytes:
        return True, streamed
    return False, whole


def _phases(
    config: DLQATJob,
    plan: QuantizationPlan,
    facts: ModelFacts,
    device: memory.DeviceMemory,
    dtype: str,
    streamed: bool,
) -> Iterator[dict[str, int]]:
    """Yield the memory in bytes by purpose of each phase."""
    context, value_bytes = context_length(config, facts), memory.WEIGHT_BYTES[dtype]
    pass_bytes = 4 if config.precision == "float32" else 2
    weights = sum(x.weights for x in planned_layers(plan, facts))
    # the outputs of the dense model, which the kept stage is compared with
    outputs = value_bytes * config.windows * context * facts.hidden
    always = {"runtime": memory.RUNTIME_BYTES, "activations": outputs}
    in_passes = always | {"weights": memory.weight_memory(facts, dtype, streamed)}
    calibration = memory.calibration_memory(
        facts,
        dtype=dtype,
        segments=config.segments,
        context=context,
        batch=CALIBRATION_BATCH,
        streams=2 if DLQATStage.BLOCKS in config.stages else 1,
        stages=SOLVER_COPIES,
        parallel=memory.parallel_batches(facts, config.used_threads) if device.is_host else 1,
    )
    calibration["activations"] += outputs
    yield in_passes | calibration
    texts = ((config.windows, CALIBRATION_BATCH), (config.heldout_windows, config.batch))
    evaluated, judged = (memory.reading_memory(facts, n, context, b, dtype) for n, b in texts)
    if DLQATStage.BLOCKS in config.stages:
        trained = memory.block_training_memory(facts, context, ROUNDED_COPIES)
        activations = calibration["activations"]
        yield in_passes | {"activations": activations, "block training": trained}
    dense = always | {"weights": memory.weight_memory(facts, dtype)}
    replaced = value_bytes * sum(x.weights for x in facts.embeddings) * bool(plan.embedding)
    installed = replaced + value_bytes * weights * (not streamed)
    yield dense | {"held": installed, "logits": max(evaluated, judged)}
    for stage in config.stages:
        if stage not in (*TRAINED, DLQATStage.LORA):
            continue
        by_block = streamed and not config.needs_dense(stage)
        resident = in_passes if by_block else dense
        trained = trainable_parameters(config, plan, facts, stage)
        starts = weights * (config.start != "rounded" and stage != DLQATStage.LORA)
        held = value_bytes * starts + GRID_BYTES * groups(plan, facts)
        held += 4 * trained * device.is_host  # initial values, for another attempt
        yield resident | {
            "held": held,
            "optimizer": memory.ADAM_BYTES * trained,
            "training": training_bytes(config, facts, device),
        }
        held += pass_bytes * weights * (not by_block) + replaced
        yield resident | {"held": held, "optimizer": 4 * trained, "logits": judged}


def disk_space(config: DLQATJob, plan: QuantizationPlan, facts: ModelFacts) -> DiskSpace:
    """Return the peak disk space: starts of the passes over blocks in float32, codes of each stage
    and of the embedding, two checkpoints of each training, and the saved model."""
    weights = sum(x.weights for x in planned_layers(plan, facts))
    passes = {DLQATStage.GPTQ} if config.needs_gptq else set[str]()
    passes |= {stage for stage in config.quantizers if quantizer_passes(stage)}
    passes |= {DLQATStage.BLOCKS, DLQATStage.LORA_GPTQ}.intersection(config.stages)
    trainings = sum(stage in (*TRAINED, DLQATStage.LORA) for stage in config.stages)
    trained = trainable_parameters(config, plan, facts, DLQATStage.DLQAT)
    values = (4 * len(passes) + len(config.stages)) * weights
    values += sum(x.weights for x in facts.embeddings) * bool(plan.embedding)
    return DiskSpace(
        GRID_FACTOR * values
        + trainings * CHECKPOINT_BYTES * trained
        + quantized_bytes(facts, plan, config.format, config.saved_precision),
        "The passes over its blocks, its stages and the saved model",
        "Choose fewer stages, or free some space.",
        "stages",
    )


def training_bytes(config: DLQATJob, facts: ModelFacts, device: memory.DeviceMemory) -> int:
    """Return the bytes of activations, logits and one layer's gradient in a training step."""
    tokens, value_bytes = config.batch * config.length, 4 if config.precision == "float32" else 2
    block = memory.traced_values(facts)
    stored = facts.blocks * (facts.hidden if config.checkpointing else block)
    activations = stored + block * config.checkpointing
    # logits, their gradient, and the logits of a teacher
    logits = (2 + (DLQATStage.DLQAT_KD in config.stages)) * facts.vocabulary
    largest = max(x.weights for x in facts.linears)
    # weight and gradient; on a GPU also float32 weights, levels and gradient
    layer = (2 * value_bytes + 3 * 4 * (not device.is_host)) * largest
    return value_bytes * tokens * (activations + logits) + layer


def require_exportable_stage(config: DLQATJob) -> None:
    """Raise `ConfigError` if there is no stage to keep, or no held-out text to choose one."""
    stages = [s for s in config.stages if s not in NOT_QUANTIZED]
    kept_stage = next(iter(stages), DLQATStage.DLQAT) if config.keep == "auto" else config.keep
    if kept_stage not in stages:
        raise ConfigError(
            f"{STAGE_LABELS[kept_stage]} cannot be exported.",
            "It is not among the stages of this run.",
            f"Choose {', '.join(stages) or 'a quantized stage'}.",
            field="keep",
        )
    if not config.candidates:
        raise ConfigError(
            f"{STAGE_LABELS[kept_stage]} cannot be exported as {config.format}.",
            "Its weights are rounded in a transformed basis, which the format does not support.",
            "Choose the format dense, or another stage.",
            field="keep",
        )
    if len(config.candidates) > 1 and not config.holdout:
        raise ConfigError(
            "The stage to export cannot be chosen.",
            "No text is held out.",
            "Set a held-out share, or choose the stage.",
            field="holdout",
        )


def export_requirements(
    config: DLQATJob, group: QuantSettings, plan: QuantizationPlan, facts: ModelFacts
) -> ExportRequirements:
    """Return the properties of a group of layers that the export format must support."""
    layers = planned_layers(plan, facts)
    largest_group = max(plan.groups, key=lambda x: len(x.layers))
    gate_up = {x.name for x in layers if tensor_name(x.name).endswith(f"experts.{GATE_UP}")}
    experts = experts_of(
        facts.support.separate,
        {x.name for x in facts.linears},
        {*largest_group.layers},
        {x.name for x in layers}.difference(largest_group.layers),
    )
    return ExportRequirements(
        bits=group.bits,
        grid=group.grid,
        scale_dtype=config.saved_precision,
        in_out=any(x.stored.transposed and x.stored.expert is None for x in layers),
        experts=experts,
        all_quantized=len(layers) == len(facts.linears),
        shapes=frozenset((x.rows // (2 if x.name in gate_up else 1), x.columns) for x in layers),
        architecture=facts.architecture,
    )


def verdict(stages: StageComparison) -> str:
    """Summarize in words if training helped on this model."""
    trained = next((s for s in TRAINED if s in stages.perplexity), None)
    rival = strongest(stages.perplexity, POST_TRAINING)
    if trained is None or not rival:
        return ""
    rivals = {stage: STAGE_NAMES[stage] for stage in rivals_of(trained, stages.perplexity)}
    text = f"{STAGE_LABELS[trained]} {stages.clause(trained, rivals)}."
    if DLQATStage.LORA in stages.perplexity and trained == DLQATStage.DLQAT:
        lora, dlqat = stages.perplexity[DLQATStage.LORA], stages.perplexity[DLQATStage.DLQAT]
        is_worse = stages.order(DLQATStage.DLQAT, DLQATStage.LORA) == "above"
        increase = f"raises it by {fixed(100 * (dlqat / lora - 1), 1)} %"
        effect = increase if is_worse else "changes nothing measurable"
        text += (
            f" The same training without quantization reaches {fixed(lora, 2)}: rounding {effect}."
        )
    dense = DLQATStage.DENSE in stages.perplexity
    if dense and stages.order(trained, DLQATStage.DENSE) == "below":
        text += " It is below the dense model because it was trained on this kind of text."
    return text + HELPED[stages.order(trained, rival)]


def rivals_of(stage: str, perplexity: Mapping[str, float]) -> list[str]:
    """Return the measured rivals of a trained stage: the best post-training quantizer, then other
    ways of training. Variants of DL-QAT are not rivals of each other."""
    others = (DLQATStage.BLOCKS, *TRAINED, DLQATStage.LORA_GPTQ)
    own = TRAINED if stage in TRAINED else (stage,)
    rivals = (strongest(perplexity, POST_TRAINING), *(s for s in others if s not in own))
    return [str(rival) for rival in rivals if rival in perplexity]


def headline(values: Mapping[str, Any]) -> list[str]:
    """Return the settings that name a run: its budget if the layers differ, else bits and group
    size; the number of overrides; and the bits of the embedding."""
    allocation, overrides = str(values.get("allocation", "")), str(values.get("overrides") or "")
    budget, embedding = allocation.removeprefix(PREFIX), str(values.get("embedding", ""))
    uniform = [f"{values.get('bits')} bits", f"group size {values.get('group_size')}"]
    named = [f"mixed, {budget}"] if budget != allocation else uniform
    if overrides:
        count = len(overrides.split(","))
        named.append(f"{count} override{'s' * (count > 1)}")
    if embedding.isdigit():
        named.append(f"embedding {embedding} bits")
    return named


def key_figure(values: Values, kept_stage: str) -> KeyFigure | None:
    """Return the perplexity of a trained stage relative to its strongest rival; of a run that
    trained nothing, the bits per weight."""
    bits = values.get((kept_stage, BITS_PER_WEIGHT))
    perplexity = perplexities(values)
    if bits is None or kept_stage not in perplexity:
        return None
    size = f"{fixed(bits, 2)} bits"
    if kept_stage not in POST_TRAINING and (rivals := rivals_of(kept_stage, perplexity)):
        return rival_figure(values, kept_stage, rivals, STAGE_NAMES, f"at {size} per weight")
    text = reached(perplexity, STAGE_LABELS, kept_stage)
    return KeyFigure(size, "per weight, down from 16", text)


STYLES = {
    "dense": StageStyle("gray", main=True),
    "rtn": StageStyle("vermillion", main=True, short="RTN"),
    "gptq": StageStyle("purple", main=True),
    "block-wise": StageStyle("green", "dot", main=True, short="Block-wise"),
    "m-only": StageStyle("pink", trained=True),
    "lora-only": StageStyle("pink", "dot", trained=True),
    "dlqat": StageStyle("blue", main=True, trained=True),
    "dlqat-kd": StageStyle("blue", "dot", trained=True),
    "lora": StageStyle("green"),
    "lora-gptq": StageStyle("brown", "dot"),
}
KIND = Kind(
    name=NAME,
    title="DL-QAT quantization",
    summary="Quantize to a few bits while fine-tuning, with one learned scale per group.",
    config=DLQATJob,
    requirements=requirements,
    plan=QuantizationPlan,
    run="jobs.dlqat.run:run",
    order=20,
    main_fields=("bits", "group_size", "embedding"),
    compresses=True,
    saves="model",
    saves_packed=True,
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=DLQATStage.DLQAT,
    verdict=verdict,
    remedy="more bits, smaller groups, or longer training",
    key_figure=key_figure,
    headline=headline,
    headline_fields=frozenset({"bits", "group_size", "allocation", "overrides", "embedding"}),
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
        "DL-QAT": "Trains group scales and low-rank updates with rounding, from a GPTQ start.",
        "DL-QAT beside its rivals": "DL-QAT vs. rounding to nearest, GPTQ and 16-bit LoRA.",
        "DL-QAT distilled": "Trains on the output distributions of the dense model.",
        "GPTQ": "Post-training: compensates errors column by column.",
        "GPTQ by layer": "Post-training: more bits for sensitive layers; needs a profile.",
        "AWQ": "Post-training: scales up channels with large inputs before rounding. No packed "
        "format can store its weights, so the file stays in 16 bits.",
        "HQQ": "Post-training: needs no calibration text.",
        "Block-wise": "Trains weights and grids of each block together.",
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
