"""The kind `sds`: config, requirements and verdict of SDS pruning runs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from backend.budget import PREFIX
from backend.errors import ConfigError
from backend.export.sizes import dense_bytes, growth_warning
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.options import option
from backend.pruning.config import (
    RECONSTRUCTED,
    STAGE_LABELS,
    STEP_LABELS,
    SDSConfig,
    SDSPass,
    SDSStage,
    heldout_stages,
)
from backend.pruning.plan import PruningPlan, pruning_plan
from backend.pruning.pruners import DECLARED_PRUNERS
from jobs.estimates import PhaseWork
from jobs.fields.models import resolve_model
from jobs.fields.text import TextConfig, check_text, context_length
from jobs.fields.types import ModelConfig
from jobs.kind import (
    DiskSpace,
    JobConfig,
    KeyFigure,
    Kind,
    Requirements,
    StageStyle,
    Values,
    rival_figure,
)
from jobs.limits import run_memory
from jobs.metrics import PERPLEXITY
from jobs.profile.profiles import pruned_mix, replaced_fields
from jobs.wording import StageComparison

NAME = "sds"
BLOCK_COPIES = 6  # copies of the current block: its stages, and a sorted copy for statistics
PAID = {
    "below": "",
    "above": " The re-dense step did not pay off on this model.",
    "": " The evaluation text is too short to decide if the re-dense step pays off.",
}


class SDSJob(ModelConfig, SDSConfig, TextConfig, JobConfig):
    """Model, texts and settings of the method."""

    weights: Literal["auto", "memory", "streamed"] = option("auto", "Weights", advanced=True)
    """memory: load all blocks. streamed: read each block from disk in every pass; slower, same
    result. auto: streamed if the model does not fit into memory."""


def requirements(config: SDSJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    refuse_streaming(config, facts)
    plan = pruning_plan(config, facts.linears, pruned_mix(config, config.overrides))
    warnings = check_text(config, facts)
    sizes = facts.bytes, dense_bytes(facts)
    warning = growth_warning(
        *sizes, "Zeros take as much space as other values. Quantize the result."
    )
    device = run_memory(config.device)
    streamed, memory_parts = memory_bytes(config, facts, device.free, device.dtype(facts.dtype))
    warnings += (memory.streaming_warning(device),) * streamed
    return Requirements(
        title=facts.title,
        plan=plan,
        work=work(config, plan, facts),
        memory=memory_parts,
        device=device,
        disk=disk_space(config, plan, facts, device),
        warnings=warnings,
        sizes=(*sizes, facts.parameters),
        field_warnings=replaced_fields(config.allocation, "pattern")
        | ({"pattern": warning} if warning else {}),
    )


def refuse_streaming(config: SDSJob, facts: ModelFacts) -> None:
    """Raise `ConfigError` if a streamed model cannot be read block by block or would have to sample
    its calibration text."""
    if config.weights != "streamed":
        return
    if facts.support.stream:
        problem = f"{facts.title} cannot be read block by block."
        raise ConfigError(problem, facts.support.stream, "Choose auto or memory.", field="weights")
    if config.calibration_text == "self":
        problem = "A streamed model cannot sample its own calibration text."
        reason = "Every token would read the whole model from disk."
        advice = "Choose a corpus, or keep the weights in memory."
        raise ConfigError(problem, reason, advice, field="calibration_text")


def work(config: SDSJob, plan: PruningPlan, facts: ModelFacts) -> list[PhaseWork]:
    """See `Requirements.work`."""
    weights = facts.linear_weights
    solve = sum(x.rows * x.columns**2 for x in facts.linears)  # one product with a Gram
    context = context_length(config, facts)
    counts = (config.segments, config.heldout_windows, config.windows)
    calibration, heldout, evaluation = (n * context for n in counts)
    stages = Counter(plan.stages)
    prunings = stages[SDSStage.FIRST] + stages[SDSStage.SECOND]
    products = max(DECLARED_PRUNERS[x.pruner].facts.get("products", 0.0) for x in plan.groups)
    passes = 2 * prunings + (SDSPass.OUTLIERS in plan.passes)
    reconstructions = sum(stages[stage] for stage in RECONSTRUCTED)
    # one pass each of the dense and the compressed block, three per training epoch
    block_tokens = (2 + 3 * config.reconstruct) * calibration + 2 * heldout
    token_products = weights + facts.vocabulary * facts.hidden
    steps: dict[str, float] = {
        "inputs": passes * weights * calibration,
        "redense": stages[SDSStage.REDENSE] * config.redense_steps * solve,
        "control": stages[SDSStage.CONTROL] * config.adjust_steps * solve,
        "sds": stages[SDSStage.SDS] * config.adjust_steps * solve,
        "blocks": reconstructions * weights * block_tokens,
    }
    return [
        PhaseWork("dense", token_products * evaluation),
        PhaseWork("prune", prunings * (1 + products) * solve, "float32", STEP_LABELS["pruning"]),
        *(PhaseWork("prune", amount, step=STEP_LABELS[step]) for step, amount in steps.items()),
        PhaseWork("prune", 4 * weights * len(plan.stages), "memory", STEP_LABELS["statistics"]),
        PhaseWork("prune", 2 * weights * len(plan.stages), "disk", STEP_LABELS["checkpoints"]),
        PhaseWork(
            "evaluate",
            token_products * len(heldout_stages(plan.stages)) * heldout,
            step=STEP_LABELS["heldout"],
        ),
        PhaseWork("evaluate", token_products * (len(plan.stages) - 1) * evaluation),
    ]


def memory_bytes(
    config: SDSJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Return True if the model is streamed, and the peak memory in bytes by purpose.

    auto streams a model that does not fit, unless it samples its own calibration text: every token
    would then read the whole model from disk.
    """
    states = hidden_state_bytes(config, facts, dtype)
    is_small = memory.block_weights(facts) <= memory.SMALL_BLOCK_WEIGHTS
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments + config.heldout_windows * bool(config.reconstruct),
        "context": context_length(config, facts),
        "batch": config.batch,
        "windows": max(config.windows, config.heldout_windows),
        "streams": config.streams,
        "parallel": memory.parallel_batches(facts, config.used_threads),
        # another thread may measure and store the previous block
        "stages": BLOCK_COPIES * (1 + (is_small and config.used_threads > 1)),
        "on_disk": memory.spills_to_disk(config.activations, states, available),
    }
    trained = memory.block_training_memory(facts, sizes["context"]) if config.reconstruct else 0
    is_tight = (
        memory.memory_needed(facts, **sizes) + trained > memory.STREAMING_THRESHOLD * available
    )
    may_sample = config.calibration_text == "self"
    may_stream = config.weights == "auto" and not may_sample and not facts.support.stream
    streamed = config.weights == "streamed" or (may_stream and is_tight)
    parts = memory.memory_parts(facts, streamed=streamed, **sizes)
    return streamed, parts | {"reconstruction": trained}


def hidden_state_bytes(config: SDSJob, facts: ModelFacts, dtype: str = "float32") -> int:
    """Return the bytes of the hidden states of the calibration text."""
    context = context_length(config, facts)
    segments = config.segments + config.heldout_windows * bool(config.reconstruct)
    return config.streams * memory.activation_memory(facts, segments, context, dtype)


def disk_space(
    config: SDSJob, plan: PruningPlan, facts: ModelFacts, device: memory.DeviceMemory
) -> DiskSpace:
    """Return the peak disk space: stages, saved model and hidden states.

    Stages are stored in the dtype of the model's files, the re-dense stage in float32.
    """
    pruned, dtype = facts.linear_weights, facts.saved_dtype
    value_bytes = memory.WEIGHT_BYTES[dtype]
    stages = sum(
        pruned * (4 if stage == SDSStage.REDENSE else value_bytes) for stage in plan.stages
    )
    state_bytes = hidden_state_bytes(config, facts, device.dtype(facts.dtype))
    on_disk = memory.spills_to_disk(config.activations, state_bytes, device.free)
    return DiskSpace(
        stages + memory.weight_memory(facts, dtype) + state_bytes * on_disk,
        f"The {len(plan.stages)} stages and the saved model",
        "Leave out the control, stop after the first pruning, or free some space.",
        "until",
    )


def headline(values: Mapping[str, Any]) -> list[str]:
    """Return the settings that name a run: pattern (or budget) and pruner, with "one-shot" if the
    run stops after the first pruning."""
    allocation = str(values.get("allocation", ""))
    budget = allocation.removeprefix(PREFIX)
    target = f"{budget} on average" if budget != allocation else values.get("pattern")
    prefix = "one-shot " if values.get("until") == SDSStage.FIRST else ""
    pruner = f"{prefix}{base}" if (base := values.get("base")) else ""
    return [str(value) for value in (target, pruner) if value]


def verdict(stages: StageComparison) -> str:
    """Summarize in words if SDS helped on this model.

    If both arms end with block reconstruction, their reconstructed stages decide.
    """
    if not {SDSStage.SDS, SDSStage.FIRST} <= stages.perplexity.keys():
        return _first_reconstructed(stages)
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its control"}
    measured = _measured(stages, rivals)
    text = f"SDS {stages.clause(SDSStage.SDS, measured)}.{_reconstructed(stages)}"
    if SDSStage.CONTROL not in measured:
        return f"{text} There is no control to decide if the re-dense step paid off."
    if {SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS} <= stages.perplexity.keys():
        return text + PAID[stages.order(SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS)]
    return text + PAID[stages.order(SDSStage.SDS, SDSStage.CONTROL)]


def _first_reconstructed(stages: StageComparison) -> str:
    """Summarize the effect of block reconstruction on a run that stopped after the first
    pruning."""
    if not {SDSStage.FIRST_BLOCKS, SDSStage.FIRST} <= stages.perplexity.keys():
        return ""
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its adjusted form"}
    clause = stages.clause(SDSStage.FIRST_BLOCKS, _measured(stages, rivals))
    return f"Block reconstruction {clause}."


def _reconstructed(stages: StageComparison) -> str:
    """Summarize the effect of block reconstruction on SDS; empty without it."""
    if SDSStage.SDS_BLOCKS not in stages.perplexity:
        return ""
    rivals = {
        SDSStage.SDS: "SDS",
        SDSStage.FIRST_BLOCKS: "the first pruning with block reconstruction",
    }
    clause = stages.clause(SDSStage.SDS_BLOCKS, _measured(stages, rivals))
    return f" With block reconstruction it {clause}."


def _measured(stages: StageComparison, rivals: Mapping[SDSStage, str]) -> dict[str, str]:
    """Return the rivals with a measured perplexity, with their names in a sentence."""
    return {str(stage): name for stage, name in rivals.items() if stage in stages.perplexity}


NAMES: Mapping[str, str] = {
    SDSStage.FIRST: "the first pruning",
    SDSStage.CONTROL: "its control",
    SDSStage.SDS: "SDS",
    SDSStage.SECOND: "the second pruning, not adjusted",
    SDSStage.FIRST_BLOCKS: "block reconstruction",
    SDSStage.SDS_BLOCKS: "SDS with block reconstruction",
}
RIVALS: Mapping[str, tuple[SDSStage, ...]] = {
    SDSStage.SDS: (SDSStage.CONTROL, SDSStage.FIRST),
    SDSStage.SECOND: (SDSStage.CONTROL, SDSStage.FIRST),
    SDSStage.FIRST_BLOCKS: (SDSStage.FIRST, SDSStage.CONTROL),
    SDSStage.SDS_BLOCKS: (SDSStage.FIRST_BLOCKS, SDSStage.SDS),
}


def key_figure(values: Values, kept_stage: str) -> KeyFigure | None:
    """Return the perplexity of the kept stage relative to its strongest rival: of SDS mostly the
    control, which adjusts the weights of the first pruning without the re-dense step."""
    kept = kept_stage or SDSStage.SDS
    is_controlled = kept != SDSStage.SDS or (SDSStage.CONTROL, PERPLEXITY) in values
    caution = "" if is_controlled else "(no control: adjustment alone may explain it)"
    return rival_figure(values, kept, RIVALS.get(kept, ()), NAMES, caution)


STYLES = {
    "dense": StageStyle("gray", main=True),
    "first": StageStyle("vermillion", main=True, pruned=True),
    "control": StageStyle("vermillion", "dot", pruned=True, short="Adjustment alone"),
    "redense": StageStyle("purple", main=True),
    "second": StageStyle("blue", "dot", pruned=True, short="Second, not adjusted"),
    "sds": StageStyle("blue", main=True, pruned=True, short="SDS"),
    "first-blocks": StageStyle(
        "green", "dash", main=True, pruned=True, short="Block reconstruction"
    ),
    "sds-blocks": StageStyle("blue", "dash", main=True, pruned=True, short="SDS, reconstructed"),
}
KIND = Kind(
    name=NAME,
    title="SDS pruning",
    summary="Prune, re-densify, prune again: lower loss than pruning once.",
    config=SDSJob,
    requirements=requirements,
    run="jobs.sds.run:run",
    plan=PruningPlan,
    order=10,
    main_fields=("pattern", "base", "reconstruct"),
    headline=headline,
    headline_fields=frozenset({"pattern", "base"}),
    compresses=True,
    saves="model",
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=SDSStage.SDS,
    verdict=verdict,
    remedy="a lower sparsity, an unstructured pattern (50% instead of 2:4), or more calibration "
    "text",
    key_figure=key_figure,
    recipes={
        "SDS": {},
        "SDS and its control": {"control": True},
        "SparseGPT": {"until": "first", "base": "sparsegpt"},
        "Wanda": {"until": "first", "base": "wanda"},
        "ALPS": {"until": "first", "base": "alps"},
    },
    notes={
        "SDS": "Prune, re-densify, prune again.",
        "SDS and its control": "SDS plus an ablation without re-densifying.",
        "SparseGPT": "One-shot: compensates errors column by column with second-order information.",
        "Wanda": "One-shot: ranks weights by magnitude times input norm; fastest.",
        "ALPS": "One-shot: solves each layer with ADMM; most accurate.",
    },
    presets={
        "quick look": {
            "segments": 12,
            "context": 256,
            "windows": 8,
            "adjust_steps": 6,
            "redense_steps": 10,
        },
        "default": {},
        "thorough": {"segments": 128, "windows": 64, "adjust_steps": 60, "reconstruct": 3},
    },
)
