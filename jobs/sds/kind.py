"""SDS pruning as a kind of job: its config, what a run needs, and its findings in words."""

from collections import Counter
from collections.abc import Mapping
from math import log
from typing import Any, Literal

from backend.budget import PREFIX
from backend.errors import ConfigError
from backend.export.sizes import dense_bytes
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
from jobs.kind import DiskSpace, JobConfig, KeyFigure, Kind, Requirements, StageStyle, Values
from jobs.metrics import PERPLEXITY
from jobs.profile.profiles import pruned_mix
from jobs.wording import StageComparison, apart, fixed

NAME = "sds"
BLOCK_COPIES = 6  # of a block at work: its stages, and a sorted one for statistics
PAID = {
    "below": "",
    "above": " The re-dense detour did not pay on this model.",
    "": " The evaluation text is too short to tell whether the re-dense detour pays.",
}


class SDSJob(ModelConfig, SDSConfig, TextConfig, JobConfig):
    """Model, texts and settings of the method."""

    weights: Literal["auto", "memory", "streamed"] = option("auto", "Weights", advanced=True)
    """memory: all at once. streamed: one block at a time, read from disk in every pass; slower, the
    same result. auto: streamed if the model does not fit."""


def requirements(config: SDSJob) -> Requirements:
    """See `Kind.requirements`."""
    facts = resolve_model(config.model).facts
    facts.require_compressible()
    refuse_streaming(config, facts)
    plan = pruning_plan(config, facts.linears, pruned_mix(config, config.overrides))
    warnings = check_text(config, facts)
    streamed, needed = memory_bytes(config, facts, memory.memory_available())
    if streamed:
        warnings += ("The model does not fit into memory: its blocks are read from disk.",)
    return Requirements(
        title=facts.title,
        plan=plan,
        work=work(config, plan, facts),
        memory=needed,
        disk=disk_space(config, plan, facts),
        warnings=warnings,
        sizes=(facts.bytes, dense_bytes(facts), facts.parameters),
    )


def refuse_streaming(config: SDSJob, facts: ModelFacts) -> None:
    """Refuse to stream a model that cannot be, or that would sample its own calibration text.
    Raises ConfigError: names the field."""
    if config.weights != "streamed":
        return
    if facts.support.stream:
        what = f"{facts.title} cannot be read block by block."
        raise ConfigError(what, facts.support.stream, "Choose auto or memory.", field="weights")
    if config.calibration_text == "self":
        what = "A streamed model cannot sample its own calibration text."
        why = "Every token would read the whole model from disk."
        do = "Choose a corpus, or keep the weights in memory."
        raise ConfigError(what, why, do, field="calibration_text")


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
    made = sum(stages[stage] for stage in RECONSTRUCTED)
    # the dense and the compressed block once; forwards and backwards to train
    seen = (2 + 3 * config.reconstruct) * calibration + 2 * heldout
    token = weights + facts.vocabulary * facts.hidden
    steps: dict[str, float] = {
        "inputs": passes * weights * calibration,
        "redense": stages[SDSStage.REDENSE] * config.redense_steps * solve,
        "control": stages[SDSStage.CONTROL] * config.adjust_steps * solve,
        "sds": stages[SDSStage.SDS] * config.adjust_steps * solve,
        "blocks": made * weights * seen,
    }
    return [
        PhaseWork("dense", token * evaluation),
        PhaseWork("prune", prunings * (1 + products) * solve, "float32", STEP_LABELS["pruning"]),
        *(PhaseWork("prune", amount, step=STEP_LABELS[step]) for step, amount in steps.items()),
        PhaseWork("prune", 4 * weights * len(plan.stages), "memory", STEP_LABELS["statistics"]),
        PhaseWork("prune", 2 * weights * len(plan.stages), "disk", STEP_LABELS["checkpoints"]),
        PhaseWork(
            "evaluate",
            token * len(heldout_stages(plan.stages)) * heldout,
            step=STEP_LABELS["heldout"],
        ),
        PhaseWork("evaluate", token * (len(plan.stages) - 1) * evaluation),
    ]


def memory_bytes(
    config: SDSJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether the model is streamed, and then purpose -> bytes at the peak.

    auto streams a model that would not fit, unless it samples its own calibration text: then every
    token would read all of it from disk."""
    states = hidden_state_bytes(config, facts, dtype)
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments + config.heldout_windows * bool(config.reconstruct),
        "context": context_length(config, facts),
        "batch": config.batch,
        "streams": config.streams,
        "stages": BLOCK_COPIES * (1 + (memory.block_weights(facts) <= memory.SMALL_BLOCK)),
        "on_disk": memory.wait_on_disk(config.activations, states, available),
    }
    trained = memory.block_training_memory(facts, sizes["context"]) if config.reconstruct else 0
    tight = memory.memory_needed(facts, **sizes) + trained > memory.STREAMING_THRESHOLD * available
    auto = config.weights == "auto" and config.calibration_text != "self"
    auto = auto and not facts.support.stream
    streamed = config.weights == "streamed" or (auto and tight)
    needed = memory.memory_parts(facts, streamed=streamed, **sizes)
    if trained:
        needed["reconstruction"] = trained
    return streamed, needed


def hidden_state_bytes(config: SDSJob, facts: ModelFacts, dtype: str = "float32") -> int:
    """Bytes of the hidden states of the calibration text."""
    context = context_length(config, facts)
    segments = config.segments + config.heldout_windows * bool(config.reconstruct)
    return config.streams * memory.activation_memory(facts, segments, context, dtype)


def disk_space(config: SDSJob, plan: PruningPlan, facts: ModelFacts) -> DiskSpace:
    """What a run leaves and needs on disk at its peak: stages, the saved model, hidden states.

    A stage is kept in the dtype of the model's files, but for the re-dense one, which is float32.
    """
    pruned = facts.linear_weights
    dtype = facts.saved_dtype
    width = memory.WEIGHT_BYTES[dtype]
    stages = sum(pruned * (4 if stage == SDSStage.REDENSE else width) for stage in plan.stages)
    states = hidden_state_bytes(config, facts)
    waiting = memory.wait_on_disk(config.activations, states, memory.memory_available())
    return DiskSpace(
        stages + memory.weight_memory(facts, dtype) + states * waiting,
        f"Its {len(plan.stages)} stages and the saved model",
        "Leave out the control, stop after the first pruning, or free some space.",
        "until",
    )


def headline(values: Mapping[str, Any]) -> list[str]:
    """A budget in place of the pattern, which it replaces; "one-shot" where SDS is left out."""
    allocation = str(values.get("allocation", ""))
    budget = allocation.removeprefix(PREFIX)
    first = f"{budget} on average" if budget != allocation else values.get("pattern")
    once = "one-shot " if values.get("until") == SDSStage.FIRST else ""
    pruner = f"{once}{base}" if (base := values.get("base")) else ""
    return [str(value) for value in (first, pruner) if value]


def verdict(stages: StageComparison) -> str:
    """In words, whether the method helped on this model.

    Where both are reconstructed block by block, their ends tell whether the re-dense detour paid.
    """
    if not {SDSStage.SDS, SDSStage.FIRST} <= stages.perplexity.keys():
        return _first_reconstructed(stages)
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its control"}
    measured = _measured(stages, rivals)
    text = f"SDS {stages.clause(SDSStage.SDS, measured)}.{_reconstructed(stages)}"
    if SDSStage.CONTROL not in measured:
        return f"{text} No control was run, so whether the re-dense detour paid is not known."
    if {SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS} <= stages.perplexity.keys():
        return text + PAID[stages.order(SDSStage.SDS_BLOCKS, SDSStage.FIRST_BLOCKS)]
    return text + PAID[stages.order(SDSStage.SDS, SDSStage.CONTROL)]


def _first_reconstructed(stages: StageComparison) -> str:
    """In words, what block reconstruction gave a run that stopped after the first pruning."""
    if not {SDSStage.FIRST_BLOCKS, SDSStage.FIRST} <= stages.perplexity.keys():
        return ""
    rivals = {SDSStage.FIRST: "the first pruning", SDSStage.CONTROL: "its adjusted form"}
    clause = stages.clause(SDSStage.FIRST_BLOCKS, _measured(stages, rivals))
    return f"Block reconstruction {clause}."


def _reconstructed(stages: StageComparison) -> str:
    """In words, what block reconstruction gave; empty without it."""
    if SDSStage.SDS_BLOCKS not in stages.perplexity:
        return ""
    rivals = {SDSStage.SDS: "SDS", SDSStage.FIRST_BLOCKS: "the first pruning reconstructed alike"}
    clause = stages.clause(SDSStage.SDS_BLOCKS, _measured(stages, rivals))
    return f" With its blocks reconstructed, it {clause}."


def _measured(stages: StageComparison, rivals: Mapping[SDSStage, str]) -> dict[str, str]:
    """Those of `rivals` that have a perplexity: stage -> its name in a sentence."""
    return {str(stage): name for stage, name in rivals.items() if stage in stages.perplexity}


def key_figure(values: Values, kept: str) -> KeyFigure | None:
    """The share of the perplexity lost to the first pruning that the kept stage wins back:

    won_back = (first - end) / (first - dense)      end: the kept stage

    and the same share of the cross-entropy, their logarithms."""
    stages = (SDSStage.DENSE, SDSStage.FIRST, SDSStage.CONTROL, SDSStage.SDS, SDSStage.SDS_BLOCKS)
    dense, first, control, sds, blocks = (values.get((stage, PERPLEXITY)) for stage in stages)
    end = values.get((kept, PERPLEXITY), sds)
    if dense is None or first is None or end is None or first <= dense or kept == SDSStage.FIRST:
        return None
    blocks = values.get((SDSStage.FIRST_BLOCKS, PERPLEXITY)) if blocks is None else blocks
    named = {
        "dense": dense,
        "pruned": first,
        "only adjusted": control,
        "after SDS": sds,
        "blocks reconstructed": blocks,
    }
    known = {name: value for name, value in named.items() if value is not None}
    told = zip(apart([*known.values()]), known, strict=True)
    entropy = log(first / end) / log(first / dense)
    return KeyFigure(
        f"{fixed(100 * (first - end) / (first - dense), 0)} %",
        "of the perplexity lost to pruning won back",
        f"Perplexity {', '.join(map(' '.join, told))}. "
        f"In cross-entropy, {fixed(100 * entropy, 0)} %.",
    )


STYLES = {
    "dense": StageStyle("gray", main=True),
    "first": StageStyle("vermillion", main=True, pruned=True),
    "control": StageStyle("vermillion", "dot", pruned=True),
    "redense": StageStyle("purple", main=True),
    "second": StageStyle("blue", "dot", pruned=True),
    "sds": StageStyle("blue", main=True, pruned=True),
    "first-blocks": StageStyle("green", "dash", main=True, pruned=True),
    "sds-blocks": StageStyle("blue", "dash", main=True, pruned=True),
}
KIND = Kind(
    name=NAME,
    title="SDS pruning",
    summary="Prune, let the removed weights grow back a little, prune again. Loses less than "
    "pruning once.",
    config=SDSJob,
    requirements=requirements,
    run="jobs.sds.run:run",
    plan=PruningPlan,
    order=10,
    main_fields=("pattern", "base"),
    headline=headline,
    headline_fields=frozenset({"pattern", "base"}),
    compresses=True,
    saves="model",
    stages=STAGE_LABELS,
    styles=STYLES,
    default_stage=SDSStage.SDS,
    verdict=verdict,
    remedy="a lower sparsity, zeros at any place (50% instead of 2:4), the pruner SparseGPT or "
    "ALPS, or more calibration text than a quick look has",
    key_figure=key_figure,
    recipes={
        "SDS": {},
        "SDS and its control": {"control": True},
        "SparseGPT": {"until": "first", "base": "sparsegpt"},
        "Wanda": {"until": "first", "base": "wanda"},
        "ALPS": {"until": "first", "base": "alps"},
    },
    notes={
        "SDS": "Prune, make dense again, prune again.",
        "SDS and its control": "SDS, and the same without its middle step, to see if that step "
        "pays.",
        "SparseGPT": "One-shot: second-order errors of the layer, column by column.",
        "Wanda": "One-shot: weights times the norms of their inputs. The fastest.",
        "ALPS": "One-shot: the layer's problem solved by ADMM. The most accurate.",
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
