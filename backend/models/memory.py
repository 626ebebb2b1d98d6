"""Estimates of the memory that a job needs, before its model is loaded. Does not import torch."""

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
# largest number of weights of a block whose batches, and whose successor, may run in parallel
SMALL_BLOCK = 2**24
MAX_PARALLEL_BATCHES = 4  # each holds its activations in memory
MAX_LOGITS = 2**26  # maximum logits [b, L, V] per forward pass: 256 MB in float32
SCRATCH_COPIES = 8  # copies of the largest weight during a solve
ADAM_BYTES = 16  # per trained parameter: value, gradient and two moments in float32
WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
CGROUPS = (  # files with limit and usage: cgroup v2, then v1
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
    """Bytes for training one block on segments of `context` tokens.

    `copies` float32 copies of the block's weights (values, gradient, two moments, best values so
    far), and for the backward pass twice the inputs and outputs of each layer."""
    first_block = [x for x in facts.linears if x.block == facts.linears[0].block]
    activations = 2 * context * sum(x.rows + x.columns for x in first_block)
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
    """Estimate the peak memory of a job, as an upper bound in bytes by purpose.

    Args:
        facts: model of the job.
        dtype: dtype of the loaded weights.
        copies: models in memory at the same time (2 for a dense and a pruned model).
        segments: segments of the calibration set; 0: there is none.
        context: tokens per segment.
        batch: segments per pass of the language-model head.
        streams: hidden-state streams in memory (2 for sparse and dense inputs).
        stages: float32 copies of the current block.
        streamed: True if blocks are read one at a time.
        on_disk: True if hidden states are on disk, except for the current batch.
    """
    segments_in_memory = min(segments, batch) if on_disk else segments
    largest = max((x.weights for x in facts.linears), default=0)
    parameters = facts.parameters
    if streamed:  # everything outside the blocks, and one block
        parameters += block_weights(facts) - facts.linear_weights
    grams = Counter[int]()  # block -> entries of its Gram matrices [in, in]
    for linear in facts.linears:
        grams[linear.block] += linear.columns**2
    gram_copies = MAX_PARALLEL_BATCHES if block_weights(facts) <= SMALL_BLOCK else 1
    segment_logits = context * facts.vocabulary
    return {
        "runtime": RUNTIME,
        "weights": copies * parameters * WEIGHT_BYTES[dtype],
        "activations": streams * activation_memory(facts, segments_in_memory, context, dtype),
        "grams": 4 * gram_copies * max(grams.values(), default=0) if segments else 0,
        "stages": 4 * (stages * block_weights(facts) + SCRATCH_COPIES * largest) if stages else 0,
        # logits and their log-softmax in float32
        "logits": 2 * 4 * min(batch * segment_logits, max(segment_logits, MAX_LOGITS)),
    }


def memory_needed(facts: ModelFacts, **sizes: Any) -> int:
    """Total of `memory_parts` in bytes."""
    return sum(memory_parts(facts, **sizes).values())


def wait_on_disk(choice: str, needed: int, available: int) -> bool:
    """Return True if hidden states of `needed` bytes go to disk. `choice`: auto, memory or disk."""
    return choice == "disk" or (choice == "auto" and needed > DISK_THRESHOLD * available)


def memory_available() -> int:
    """Bytes that this process can still allocate, on the machine or in its container."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            unused = int(Path(limit_file).read_text()) - int(Path(usage_file).read_text())
            available = min(available, max(unused, 0))
    return available


def memory_total() -> int:
    """Bytes of memory of the machine or of its container."""
    total = int(psutil.virtual_memory().total)
    for limit_file, _ in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            total = min(total, int(Path(limit_file).read_text()))
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` is an out-of-memory error of the CPU or a GPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(
        phrase in message
        for phrase in ("out of memory", "can't allocate memory", "not enough memory")
    )


REMEDIES = {  # part -> description, remedy, config field
    "weights": ("the weights", "Choose a smaller model, or stream its weights.", "model"),
    "activations": (
        "the hidden states",
        "Lower the segments or the context length, or keep activations on disk.",
        "segments",
    ),
    "grams": ("the second moments of one block", "Choose a smaller model.", "model"),
    "reconstruction": (
        "the training of one block",
        "Lower the context length, or turn off block reconstruction.",
        "reconstruct",
    ),
    "block training": (
        "the training of one block",
        "Lower the context length, or turn off block-wise training.",
        "stages",
    ),
    "stages": ("the stages of one block", "Choose a smaller model.", "model"),
    "answers": ("the answers generated at once", "Lower the answer length.", "answer_tokens"),
    "training": ("the training", "Lower the batch size or the sequence length.", "batch"),
    "logits": ("the logits", "Lower the context length or the segments per pass.", "context"),
}


def check_memory(needed: int | Mapping[str, int], available: int, what: str) -> None:
    """Check that a job fits into memory.

    Args:
        needed: bytes, or bytes by part (`memory_parts`) to report the largest part.
        available: bytes of available memory.
        what: subject of the error message.

    Raises:
        ModelError: `needed` exceeds `available`.
    """
    parts = needed if isinstance(needed, Mapping) else {}
    total = sum(parts.values()) if isinstance(needed, Mapping) else needed
    if total <= available:
        return
    why = f"It needs about {readable_bytes(total)}; {readable_bytes(available)} are available."
    do, field = "Choose a smaller model, or fewer and shorter segments.", "model"
    if reducible := {part: parts[part] for part in REMEDIES if parts.get(part)}:
        largest = max(reducible, key=reducible.__getitem__)
        description, do, field = REMEDIES[largest]
        why += f" The largest part, {readable_bytes(reducible[largest])}, is for {description}."
    raise ModelError(f"{what} does not fit into memory.", why, do, field=field)
