"""Estimate the memory a job needs before the model is loaded. Does not import torch."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from backend.errors import ModelError
from backend.models.facts import ModelFacts
from backend.printable import readable_bytes

RUNTIME = 600 * 2**20  # interpreter and libraries
STREAMING_THRESHOLD = 0.8  # share of memory a run may use before its model is streamed
DISK_THRESHOLD = 0.25  # share of memory hidden states may use before they are kept on disk
# weights of a block of which two may be at work at once, and several batches run side by side
SMALL_BLOCK = 2**24
BATCHES = 4  # at most side by side: with more threads, each would hold the activations of one
MAX_LOGITS = 2**26  # maximum logits [b, L, V] per forward pass: 256 MB in float32
SCRATCH_COPIES = 8  # copies of the largest weight during a solve
ADAM_BYTES = 16  # of a trained parameter: itself, its gradient, two moments
WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CGROUPS = (  # limit and usage, cgroup v2 and v1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def weight_memory(facts: ModelFacts, dtype: str = "float32") -> int:
    """Bytes of all parameters in `dtype`."""
    return facts.parameters * WEIGHT_BYTES[dtype]


def block_weights(facts: ModelFacts) -> int:
    """Number of weights of the linears of the largest block."""
    per_block = Counter[int]()
    for linear in facts.linears:
        per_block[linear.block] += linear.weights
    return max(per_block.values(), default=0)


def activation_memory(facts: ModelFacts, segments: int, context: int, dtype: str) -> int:
    """Bytes of the hidden states [segments, context, hidden] before and after one block."""
    return 2 * segments * context * facts.hidden * WEIGHT_BYTES[dtype]


def block_training_memory(facts: ModelFacts, context: int, copies: int = 5) -> int:
    """Bytes of training one block on segments of `context` tokens: float32 copies of its weights,
    among them a gradient, two moments and the best ones so far, and what the backward pass needs:
    inputs and outputs of each linear, and as much again."""
    first = [x for x in facts.linears if x.block == facts.linears[0].block]
    activations = 2 * context * sum(x.rows + x.columns for x in first)
    return 4 * (copies * block_weights(facts) + activations)


def memory_parts(
    facts: ModelFacts,
    *,
    dtype: str = "float32",
    copies: int = 1,
    segments: int = 0,
    context: int = 0,
    batch: int = 0,
    streams: int = 1,
    stages: int = 0,
    streamed: bool = False,
    on_disk: bool = False,
) -> dict[str, int]:
    """Upper estimate of the peak memory of a job in bytes, by purpose.

    Args:
        copies: models in memory at the same time (2 for a dense and a pruned model).
        segments, context: calibration set [segments, context]; 0 if there is none.
        batch: sequences of `context` tokens per pass of the language-model head.
        streams: hidden-state streams in memory (2 for sparse and dense inputs).
        stages: float32 copies of the current block.
        streamed: whether blocks are read one at a time.
        on_disk: whether hidden states are kept on disk, except for the current batch.
    """
    waiting = min(segments, batch) if on_disk else segments
    largest = max((x.weights for x in facts.linears), default=0)
    in_memory = facts.parameters  # of a streamed model: all outside the blocks, and one block
    if streamed:
        in_memory += block_weights(facts) - facts.linear_weights
    grams = Counter[int]()  # block -> entries of its Gram matrices [in, in]
    for linear in facts.linears:
        grams[linear.block] += linear.columns**2
    sums = BATCHES if block_weights(facts) <= SMALL_BLOCK else 1  # of them
    row = context * facts.vocabulary  # of logits
    return {
        "runtime": RUNTIME,
        "weights": copies * in_memory * WEIGHT_BYTES[dtype],
        "activations": streams * activation_memory(facts, waiting, context, dtype),
        "grams": 4 * sums * max(grams.values(), default=0) if segments else 0,
        "stages": 4 * (stages * block_weights(facts) + SCRATCH_COPIES * largest) if stages else 0,
        "logits": 2 * 4 * min(batch * row, max(row, MAX_LOGITS)),  # and their log-softmax
    }


def memory_needed(facts: ModelFacts, **sizes: Any) -> int:
    """The sum of `memory_parts`."""
    return sum(memory_parts(facts, **sizes).values())


def wait_on_disk(choice: str, needed: int, available: int) -> bool:
    """Whether to keep hidden states of `needed` bytes on disk; `choice`: auto, memory or disk."""
    return choice == "disk" or (choice == "auto" and needed > DISK_THRESHOLD * available)


def memory_available() -> int:
    """Bytes this process can still allocate, on the machine or in its container."""
    available = int(psutil.virtual_memory().available)
    for limit, used in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            rest = int(Path(limit).read_text()) - int(Path(used).read_text())
            available = min(available, max(rest, 0))
    return available


def memory_total() -> int:
    """Bytes of memory of the machine, or of its container."""
    total = int(psutil.virtual_memory().total)
    for limit, _ in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            total = min(total, int(Path(limit).read_text()))
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is an out-of-memory error of the host or a GPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in message
        for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


REMEDIES = {  # part -> its name, the remedy, and the config field for it
    "weights": ("the weights", "Choose a smaller model, or stream its weights.", "model"),
    "activations": (
        "the hidden states",
        "Lower the segments or the context length, or keep the activations on disk.",
        "segments",
    ),
    "grams": ("the second moments of one block", "Choose a smaller model.", "model"),
    "reconstruction": (
        "the training of one block",
        "Lower the context length, or leave out the block reconstruction.",
        "reconstruct",
    ),
    "block training": (
        "the training of one block",
        "Lower the context length, or leave out block-wise training.",
        "stages",
    ),
    "stages": ("the stages of one block", "Choose a smaller model.", "model"),
    "answers": ("the answers generated at once", "Lower the answer length.", "answer_tokens"),
    "training": ("the training", "Lower the batch size or the sequence length.", "batch"),
    "logits": ("the logits", "Lower the context length or the segments per pass.", "context"),
}


def check_memory(needed: int | Mapping[str, int], available: int, what: str) -> None:
    """Check that a job fits into memory. `needed`: bytes, or bytes by part (`memory_parts`) to
    report the largest part. Raises ModelError: `needed` exceeds `available`."""
    parts = needed if isinstance(needed, Mapping) else {}
    total = sum(parts.values()) if isinstance(needed, Mapping) else needed
    if total <= available:
        return
    why = f"It needs about {readable_bytes(total)}; {readable_bytes(available)} are available."
    do, field = "Choose a smaller model, or fewer and shorter segments.", "model"
    if named := {part: parts[part] for part in REMEDIES if parts.get(part)}:
        largest = max(named, key=named.__getitem__)
        words, do, field = REMEDIES[largest]
        why += f" Most of it, {readable_bytes(named[largest])}, is for {words}."
    raise ModelError(f"{what} does not fit into memory.", why, do, field=field)
