"""What an SDS run needs before it starts: FLOPs, memory, disk, and what is refused."""

from collections import Counter
from typing import Any

from backend.errors import ConfigError
from backend.export.sizes import dense_bytes
from backend.models import memory
from backend.models.facts import ModelFacts
from backend.pruning.config import RECONSTRUCTED, SDSPass, SDSStage, judged
from backend.pruning.plan import PruningPlan, pruning_plan
from backend.pruning.pruners import DECLARED_PRUNERS
from jobs.fields.models import resolve_model
from jobs.fields.text import check_text, context_length
from jobs.kind import DiskSpace, Requirements
from jobs.profile.profiles import pruned_mix
from jobs.runtime.duration import GRAM_SHARE
from jobs.sds.config import SDSJob

BLOCK_COPIES = 6  # of a block at work: its stages, and a sorted one for statistics


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
        model=config.model,
        title=facts.title,
        plan=plan,
        flops=flops_by_phase(config, plan, facts),
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


def flops_by_phase(config: SDSJob, plan: PruningPlan, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each phase: the basis of estimate and progress."""
    weights = facts.linear_weights
    solve = 2.0 * sum(x.rows * x.columns**2 for x in facts.linears)  # one product with a Gram
    grams = 2.0 * sum(x.columns**2 for x in facts.linears) * GRAM_SHARE
    context = context_length(config, facts)
    counts = (config.segments, config.heldout_windows, config.windows)
    calibration, heldout, evaluation = (n * context for n in counts)
    stages = Counter(plan.stages)
    prunings = stages[SDSStage.FIRST] + stages[SDSStage.SECOND]
    products = max(DECLARED_PRUNERS[x.pruner].facts.get("products", 0.0) for x in plan.groups)
    steps = stages[SDSStage.REDENSE] * config.redense_steps + prunings * products
    steps += config.adjust_steps * (stages[SDSStage.CONTROL] + stages[SDSStage.SDS])
    passes = 2 * prunings + (SDSPass.OUTLIERS in plan.passes)
    made = sum(stages[stage] for stage in RECONSTRUCTED)
    # the dense and the compressed block once; forwards and backwards to train
    seen = (2 + 3 * config.reconstruct) * calibration + 2 * heldout
    reconstructed = made * 2.0 * weights * seen
    token = 2.0 * (weights + facts.vocabulary * facts.hidden)
    judging = len(judged(plan.stages)) * heldout
    return {
        "dense": token * evaluation,
        "prune": passes * (2.0 * weights + grams) * calibration + steps * solve + reconstructed,
        "evaluate": token * ((len(plan.stages) - 1) * evaluation + judging),
    }


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
