"""SDS pruning as a job: load, measure, prune, re-densify, prune again, measure each stage, save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field

from backend.methods.sds.config import STAGE_LABELS, STEP_LABELS, SDSConfig, SDSStage
from backend.methods.sds.layer_selection import layer_patterns
from backend.methods.sds.owl import refuse_allocation
from backend.models.facts import ModelFacts
from backend.models.memory import memory_available, refuse_beyond
from backend.models.sources.catalogue import inspect
from jobs.evaluation.quality import Quality, QualityConfig, waiting
from jobs.fields.model import ModelConfig
from jobs.fields.text import TextConfig, check_text, context_length
from jobs.kind import Estimate, JobConfig, Kind
from jobs.runtime.costs import GRAM_SHARE
from jobs.runtime.duration import estimate_seconds
from jobs.sds.estimate import memory, refuse_full_disk, refuse_sampling

if TYPE_CHECKING:
    from backend.methods.sds.pipeline import SDSResult
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext
    from jobs.runtime.progress import Phases


TEXT_ALONE = QualityConfig(divergence=False, sample_tokens=0)  # the rest is for evaluations


class SDSJob(ModelConfig, SDSConfig, TextConfig, JobConfig):
    """A model, its texts, and the choices of the method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["auto", "memory", "streamed"] = Field(
        "auto",
        title="Weights",
        description="memory: all at once. streamed: one block at a time, read from disk again and "
        "again; slower, the same result. auto: streamed when the model would not fit.",
        json_schema_extra={"advanced": True},
    )


# before the work ----------------------------------------------------------------------------------


def check(config: SDSJob) -> Estimate:
    """Refuses what cannot work; tells what the rest will cost."""
    facts = inspect(config.model)
    refuse_allocation(config)
    layer_patterns(facts.linears, config)
    warnings = check_text(config, facts)
    refuse_sampling(config)
    streamed, needed = memory(config, facts, memory_available())
    if streamed:
        warnings += ("The model does not fit into memory at once: its blocks are read from disk.",)
    refuse_beyond(needed, memory_available(), facts.title)
    refuse_full_disk(config, facts)
    work = sum(parts(config, facts).values())
    seconds, basis = estimate_seconds("sds", config.model, work)
    return Estimate(seconds, sum(needed.values()), work, basis, warnings)


def parts(config: SDSJob, facts: ModelFacts) -> dict[str, float]:
    """Floating-point operations of each part of the job: the basis of estimate and progress."""
    weights = facts.linear_weights
    solve = 2.0 * sum(x.rows * x.columns**2 for x in facts.linears)  # one product with a Gram
    grams = 2.0 * sum(x.columns**2 for x in facts.linears) * GRAM_SHARE
    context = context_length(config, facts)
    calibration, evaluation = (n * context for n in (config.segments, config.windows))
    whole = config.until == "sds"
    adjustments = config.control + (whole and config.adjust != "off")
    sgd_steps = config.sgd_epochs * config.segments  # each a product with one segment's Gram
    redense = {"gram": config.redense_steps, "ridge": 1, "sgd": sgd_steps}[config.redense]
    steps = whole * redense + config.adjust_steps * adjustments
    passes = 2 * (1 + whole) + (config.allocation == "owl")
    one_evaluation = 2.0 * (weights + facts.vocabulary * facts.hidden) * evaluation
    return {
        "dense": one_evaluation,
        "prune": passes * (2.0 * weights + grams) * calibration + steps * solve,
        "evaluate": (len(config.stages) - 1) * one_evaluation,
    }


# the work -----------------------------------------------------------------------------------------


def run(config: SDSJob, context: JobContext) -> None:
    """The whole job. Everything that is finished is in a checkpoint or the database, so a killed
    job goes on where it was."""
    from backend.methods.sds.pipeline import run_sds
    from backend.models.loading import free_memory, load
    from jobs.fields.text import load_texts
    from jobs.runtime.environment import prepare
    from jobs.runtime.progress import Phases

    device = prepare(config, context)
    facts = inspect(config.model)
    dtype = "float32" if device == "cpu" else facts.dtype  # as `load` chooses it
    streamed, _ = memory(config, facts, free_memory(device), dtype)
    how = "block by block" if streamed else "at once"
    context.log(f"Loading {config.model} on {device}, {how}.")
    loaded = load(config.model, device, streamed=streamed)
    phases = Phases(context, parts(config, loaded.facts))
    calibration, evaluation = load_texts(config, loaded, config.seed, context)
    quality = Quality(
        TEXT_ALONE, loaded, evaluation, context, batch=config.batch, labels=STAGE_LABELS,
        new=waiting(config.activations, loaded.facts, evaluation, context),
    )  # fmt: skip
    quality.measure(SDSStage.DENSE, phases.phase("dense"))
    result = run_sds(
        loaded.model, calibration.input_ids, config, context.checkpoints, phases.phase("prune")
    )
    record(result, context)
    measure_stages(loaded, quality, config, phases, context)
    save_model(loaded, result.kept, config, context)
    context.result("run", "work", sum(parts(config, loaded.facts).values()))


def measure_stages(
    loaded: LoadedModel, quality: Quality, config: SDSJob, phases: Phases, context: JobContext
) -> None:
    """Measures every stage after the dense one on the same text."""
    from backend.methods.sds.pipeline import install

    stages = config.stages[1:]
    for number, stage in enumerate(stages):
        if quality.missing(stage):
            install(loaded.model, context.checkpoints, stage)
        quality.measure(stage, phases.phase("evaluate", number, len(stages)))


def record(result: SDSResult, context: JobContext) -> None:
    """Records what the method found out about itself."""
    by_stage = {
        "zero_share": result.zero_share,
        "heldout_loss": result.heldout,
        "relative_error": result.errors,
    }
    for metric, values in by_stage.items():
        for stage, value in values.items():
            context.result(stage, metric, value)
    for step, seconds in result.seconds.items():
        context.result("run", f"seconds/{STEP_LABELS[step]}", seconds)
    context.result("run", "kept", 1.0, kept=result.kept)
    context.environment(warnings=list(result.warnings))


def save_model(loaded: LoadedModel, kept: SDSStage, config: SDSJob, context: JobContext) -> None:
    """Saves the kept stage so that plain transformers can load it."""
    from backend.checkpoints import Checkpoints
    from backend.methods.sds.pipeline import install
    from backend.models.loading import save, weights_hash

    install(loaded.model, context.checkpoints, kept)
    digest = weights_hash(loaded.model)
    with Checkpoints(context.folder).write("model") as folder:
        save(loaded.model, loaded.tokenizer, folder, card(loaded, kept, config, context.run))
    context.environment(weights_sha256=digest)
    context.artifact(context.folder / "model", "model", digest)
    context.log(f"Saved the model ({STAGE_LABELS[kept]}). sha256 of its weights: {digest}")


def card(loaded: LoadedModel, kept: SDSStage, config: SDSJob, run: str) -> str:
    """The README beside the saved weights."""
    note = f"\nNote on the base: {loaded.facts.note}\n" if loaded.facts.note else ""
    method = "SDS" if config.until == "sds" else config.base
    return f"""# {loaded.facts.title}, {config.pattern} pruned by {method}

Made by Slimscope, run {run}. Stage: {STAGE_LABELS[kept]}. First pruner: {config.base}.
{note}
The zeros are stored as ordinary numbers: the file is as large as the dense one, and plain
`transformers` runs it at the dense speed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")
```

The whole config:

```json
{config.model_dump_json(indent=2)}
```
"""


def verdict(perplexity: Mapping[str, float]) -> str:
    """In words, whether the method helped on this model. `perplexity`: stage -> value."""
    sds, first, control = (
        perplexity.get(s) for s in (SDSStage.SDS, SDSStage.FIRST, SDSStage.CONTROL)
    )
    if sds is None or first is None:
        return ""
    text = f"SDS ends {_compared(sds, first)} the first pruning"
    if control is None:
        return f"{text}. No control was run, so whether the re-dense detour paid is not known."
    text += f" and {_compared(sds, control)} its control."
    return text if sds < control else f"{text} The re-dense detour did not pay on this model."


def _compared(value: float, other: float) -> str:
    """ "10.5 % below" or "3.0 % above"; perplexities, lower is better."""
    change = 100 * (value / other - 1)
    return f"{abs(change):.1f} % {'below' if change < 0 else 'above'}"


KINDS = (
    Kind(
        name="sds",
        title="SDS pruning",
        summary="Prune, re-densify into a pruning-friendly dense model, prune again.",
        config=SDSJob,
        check=check,
        run=run,
        stages=STAGE_LABELS,
        verdict=verdict,
        presets={
            "quick look": {"segments": 16, "context": 256, "windows": 8, "adjust_steps": 10},
            "default": {},
            "thorough": {"segments": 128, "windows": 64, "adjust_steps": 60},
        },
    ),
)
