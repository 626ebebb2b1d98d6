"""How much memory a model needs, before it is loaded. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from backend.errors import ModelRefused
from backend.models.facts import ModelFacts

RUNTIME = 350 * 2**20  # the interpreter and the libraries themselves
WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CGROUPS = (  # limit and use, of version 2 and version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def weight_memory(facts: ModelFacts, dtype: str = "float32") -> int:
    """Bytes of all parameters in `dtype`."""
    return facts.parameters * WEIGHT_BYTES[dtype]


def activation_memory(facts: ModelFacts, segments: int, context: int, dtype: str) -> int:
    """Bytes of the hidden states [segments, context, hidden] before and after one block."""
    return 2 * segments * context * facts.hidden * WEIGHT_BYTES[dtype]


def gram_memory(facts: ModelFacts) -> int:
    """Bytes of the float32 Gram matrices [in, in] of the block whose linears have most inputs."""
    per_block: dict[int, int] = {}
    for linear in facts.linears:
        per_block[linear.block] = per_block.get(linear.block, 0) + 4 * linear.columns**2
    return max(per_block.values(), default=0)


def logit_memory(facts: ModelFacts, batch: int, context: int) -> int:
    """Bytes of the float32 logits [batch, context, vocabulary] and their log-softmax."""
    return 2 * 4 * batch * context * facts.vocabulary


def memory_needed(
    facts: ModelFacts,
    *,
    dtype: str = "float32",
    copies: int = 1,
    segments: int = 0,
    context: int = 0,
    batch: int = 0,
    streams: int = 1,
) -> int:
    """Bytes a job needs at its peak, an estimate from above.

    Args:
        copies: models held at the same time (2 when the dense one stays beside the pruned one).
        segments, context: calibration set [segments, context]; 0 when there is none.
        batch: rows of `context` tokens that go through the language-model head at once.
        streams: hidden-state streams held side by side (sparse and dense inputs are two).
    """
    held = copies * weight_memory(facts, dtype)
    held += streams * activation_memory(facts, segments, context, dtype)
    held += gram_memory(facts) if segments else 0
    return RUNTIME + held + logit_memory(facts, batch, context)


def memory_available() -> int:
    """Bytes this process may still take: what the machine has, or its container allows."""
    available = int(psutil.virtual_memory().available)
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            rest = int(Path(limit).read_text()) - int(Path(used).read_text())
            available = min(available, max(rest, 0))
    return available


def refuse_beyond(needed: int, available: int, what: str) -> None:
    """Refuses what would not fit.

    Raises:
        ModelRefused: `needed` bytes are more than `available` ones; both are named.
    """
    if needed > available:
        raise ModelRefused(
            f"{what} does not fit into memory.",
            f"It needs about {readable(needed)}; {readable(available)} are available.",
            "Choose a smaller model, or fewer and shorter segments.",
            field="model",
        )


def readable(count: float) -> str:
    """Bytes as a person writes them: 538 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
