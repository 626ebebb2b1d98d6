"""What an SDS run needs of memory and disk, before it starts. Imports no torch."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from backend.errors import ConfigError
from backend.methods.sds.config import SDSStage
from backend.models.facts import ModelFacts
from backend.models.memory import (
    COMFORT,
    activation_memory,
    memory_available,
    memory_needed,
    memory_parts,
    readable,
    wait_on_disk,
    weight_memory,
)
from backend.settings import settings
from jobs.fields.text import context_length
from jobs.runtime.costs import GRAM_SHARE

if TYPE_CHECKING:
    from jobs.sds.run import SDSJob

STAGES_HELD = 6  # copies of the block at work: its stages, and a sorted one for statistics
UNCHANGED = ("wanda", "magnitude")  # leave the weights that stay as they were


def memory(
    config: SDSJob, facts: ModelFacts, available: int, dtype: str = "float32"
) -> tuple[bool, dict[str, int]]:
    """Whether the model is streamed, and the bytes the run needs then, by what they are for.

    auto streams a model that would not fit, unless it writes its own calibration text: then every
    token would read all of it from disk.
    """
    states = states_bytes(config, facts, dtype)
    sizes: dict[str, Any] = {
        "dtype": dtype,
        "segments": config.segments,
        "context": context_length(config, facts),
        "batch": config.batch,
        "streams": _streams(config),
        "stages": STAGES_HELD,
        "on_disk": wait_on_disk(config.activations, states, available),
    }
    tight = memory_needed(facts, **sizes) > COMFORT * available
    auto = config.weights == "auto" and config.calibration_text != "self"
    streamed = config.weights == "streamed" or (auto and tight)
    needed = memory_parts(facts, streamed=streamed, **sizes)
    if config.redense == "sgd":  # holds the Gram of every segment for the linears of a block
        block = sum(x.columns**2 for x in facts.linears if x.block == facts.linears[0].block)
        needed["segment grams"] = int(4 * config.segments * block * GRAM_SHARE)
    return streamed, needed


def _streams(config: SDSJob) -> int:
    """How many streams of hidden states there are."""
    return 1 if config.inputs == "sd" else 2


def states_bytes(config: SDSJob, facts: ModelFacts, dtype: str = "float32") -> int:
    """Bytes of the hidden states of the calibration text."""
    context = context_length(config, facts)
    return _streams(config) * activation_memory(facts, config.segments, context, dtype)


def refuse_sampling(config: SDSJob) -> None:
    """Refuses a streamed model that would write its own calibration text.

    Raises:
        ConfigRefused: with the field of the text.
    """
    if config.weights == "streamed" and config.calibration_text == "self":
        raise ConfigError(
            "A streamed model cannot write its own calibration text.",
            "Every token would read the whole model from disk.",
            "Choose a corpus, or keep the weights in memory.",
            field="calibration_text",
        )


def disk(config: SDSJob, facts: ModelFacts) -> int:
    """Bytes a run leaves and needs on disk at its peak: stages, the saved model, hidden states.

    A stage is float32, but for those that hold nothing but weights of a 16-bit model.
    """
    pruned = facts.linear_weights
    same = {SDSStage.DENSE, *([SDSStage.FIRST] if config.base in UNCHANGED else [])}
    half = facts.dtype in ("float16", "bfloat16")
    stages = sum(pruned * (2 if half and stage in same else 4) for stage in config.stages)
    states = states_bytes(config, facts)
    waiting = wait_on_disk(config.activations, states, memory_available())
    return stages + weight_memory(facts) + states * waiting


def refuse_full_disk(config: SDSJob, facts: ModelFacts) -> None:
    """Refuses a run that the disk has no room for.

    Raises:
        ConfigRefused: names both numbers, and what makes it smaller.
    """
    needed, root = disk(config, facts), settings().root
    free = shutil.disk_usage(root if root.exists() else ".").free
    if needed > free:
        raise ConfigError(
            "The run does not fit on the disk.",
            f"Its {len(config.stages)} stages and the saved model take about {readable(needed)}; "
            f"{readable(free)} are free.",
            "Leave out the control, stop after the first pruning, or free some space.",
            field="until",
        )
