"""Memory estimates of a job, computed before the model is loaded. Does not import torch."""

import importlib.util
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from backend.errors import ModelError
from backend.models.facts import ModelFacts
from backend.printable import readable_bytes

TORCH = importlib.util.find_spec("torch")
HAS_CUDA_LIBRARIES = any(
    path
    for folder in (TORCH and TORCH.submodule_search_locations) or ()
    for path in Path(folder, "lib").glob("*torch_cuda*")
)
# Bytes of the interpreter and its libraries. PyTorch with CUDA takes 410 MB more, also on a machine
# without a GPU (PyTorch 2.13.0+cu130 beside 2.13.0+cpu, Linux).
RUNTIME_BYTES = (1000 if HAS_CUDA_LIBRARIES else 600) * 2**20
STREAMING_THRESHOLD = 0.8  # share of memory that a run may use before its model is streamed
DISK_THRESHOLD = 0.25  # share of memory that hidden states may use before they are kept on disk
# If a block has at most this number of weights, two blocks and up to `MAX_PARALLEL_BATCHES` batches
# may be processed in parallel. The limit bounds the memory of their activations.
SMALL_BLOCK_WEIGHTS = 2**24
MAX_PARALLEL_BATCHES = 4
MAX_LOGITS = 2**26  # logits [batch, context, vocabulary] per forward pass: 256 MB in float32
SCRATCH_COPIES = 8  # copies of the largest weight matrix during a solve
ADAM_BYTES = 16  # per trained parameter in float32: its value, gradient, and two moments
WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
EXPERT_NUMBER = re.compile(r"(\.experts)\.\d+\.")
EXPERTS_PER_TOKEN = 8  # maximum assumed for a mixture of experts
CGROUPS = (  # paths of the memory limit and the memory usage: cgroup v2, then v1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def weight_memory(facts: ModelFacts, dtype: str = "float32", streamed: bool = False) -> int:
    """Return the bytes of all parameters in `dtype`; of a streamed model, those of one block and
    outside the blocks."""
    missing = facts.linear_weights - block_weights(facts) if streamed else 0
    return (facts.parameters - missing) * WEIGHT_BYTES[dtype]


def block_weights(facts: ModelFacts) -> int:
    """Return the number of weights in the linears of the largest block."""
    weights_by_block = Counter[int]()
    for linear in facts.linears:
        weights_by_block[linear.block] += linear.weights
    return max(weights_by_block.values(), default=0)


def traced_values(facts: ModelFacts) -> int:
    """Return the number of inputs and outputs of the linears of a block per token. Norms, attention
    and the activation function keep about as many tensors as linears share inputs. A token reaches
    only some experts."""
    block = [x for x in facts.linears if x.block == facts.linears[0].block]
    layers = {EXPERT_NUMBER.sub(r"\1.*.", x.name): x.rows + x.columns for x in block}
    return sum(n * (EXPERTS_PER_TOKEN if ".*." in name else 1) for name, n in layers.items())


def forward_values(facts: ModelFacts) -> int:
    """Return the number of values per token in a forward pass: inputs and outputs of the layers in
    attention or MLP."""
    values = Counter[str]()
    for linear in facts.linears:
        values[linear.name.rpartition(".")[0]] += linear.rows + linear.columns
    return max(values.values(), default=0)


def gram_memory(facts: ModelFacts, parallel: int) -> int:
    """Return the bytes of the Gram matrices [in, in] of a block, float32: one for each input, and a
    temporary copy of the largest. All layers of a module but its last have the same input."""
    columns = dict[int, dict[str, list[int]]]()  # block -> module -> inputs of its layers
    for linear in facts.linears:
        module = linear.name.rpartition(".")[0]
        columns.setdefault(linear.block, {}).setdefault(module, []).append(linear.columns)
    entries = 0
    for modules in columns.values():
        grams = [
            n**2 for layers in modules.values() for n in {0: layers[0], 1: layers[-1]}.values()
        ]
        entries = max(entries, parallel * sum(grams) + max(grams))
    return 4 * entries


def parallel_batches(facts: ModelFacts, threads: int) -> int:
    """Return the number of batches that run in parallel on a CPU; see `SMALL_BLOCK_WEIGHTS`."""
    is_small = block_weights(facts) <= SMALL_BLOCK_WEIGHTS and threads <= MAX_PARALLEL_BATCHES
    return threads if is_small else 1


def activation_memory(facts: ModelFacts, segments: int, context: int, dtype: str) -> int:
    """Return the bytes of the hidden states [segments, context, hidden] before and after one
    block."""
    return 2 * segments * context * facts.hidden * WEIGHT_BYTES[dtype]


def block_training_memory(facts: ModelFacts, context: int, copies: int = 5) -> int:
    """Return the memory in bytes to train one block on segments of `context` tokens.

    It consists of `copies` of the weights in float32 (weights, gradient, two moments, and best
    weights so far) and the tensors of the backward pass: the inputs and outputs of each linear, and
    the same amount for all other operations."""
    block = [linear for linear in facts.linears if linear.block == facts.linears[0].block]
    activations = 2 * context * sum(linear.rows + linear.columns for linear in block)
    return 4 * (copies * block_weights(facts) + activations)


def calibration_memory(
    facts: ModelFacts,
    *,
    dtype: str = "float32",
    segments: int = 0,
    context: int = 0,
    batch: int = 0,
    streams: int = 1,
    stages: int = 0,
    parallel: int = 1,
    on_disk: bool = False,
) -> dict[str, int]:
    """Return the bytes of passes over calibration text, by purpose; see `memory_parts`."""
    resident_segments = min(segments, batch) if on_disk else segments
    largest_layer = max((linear.weights for linear in facts.linears), default=0)
    solver_weights = stages * block_weights(facts) + SCRATCH_COPIES * largest_layer
    values = min(batch, segments) * parallel * context * forward_values(facts)
    return {
        "activations": streams * activation_memory(facts, resident_segments, context, dtype)
        + WEIGHT_BYTES[dtype] * values,
        "grams": gram_memory(facts, parallel) if segments and facts.linears else 0,
        "stages": 4 * solver_weights if stages else 0,
    }


def memory_parts(
    facts: ModelFacts,
    *,
    dtype: str = "float32",
    copies: int = 1,
    context: int = 0,
    batch: int = 0,
    windows: int = 0,
    streamed: bool = False,
    **sizes: Any,
) -> dict[str, int]:
    """Return the peak memory of a job in bytes, by purpose. The parts for calibration are 0 if the
    evaluation needs more, and vice versa.

    Args:
        facts: facts of the model.
        dtype: dtype of the loaded weights.
        copies: models in memory at the same time (2 for a dense and a pruned model).
        context: tokens per segment.
        batch: maximum number of sequences of `context` tokens per forward pass.
        windows: sequences that pass through the language-model head; 0 if a batch does.
        streamed: True if blocks are loaded one at a time.
        sizes: of the calibration:
            segments: number of calibration segments; 0 if there are none.
            streams: hidden-state streams in memory (2 for sparse and dense inputs).
            stages: float32 copies of the current block, one for each stage that is kept in memory.
            parallel: batches that run in parallel, each with its own second moments.
            on_disk: True if hidden states are kept on disk, except for the current batch.
    """
    calibration = calibration_memory(facts, dtype=dtype, context=context, batch=batch, **sizes)
    evaluation = {"logits": reading_memory(facts, windows or batch, context, batch, dtype)}
    smaller = min(calibration, evaluation, key=lambda parts: sum(parts.values()))
    return {
        "runtime": RUNTIME_BYTES,
        "weights": copies * weight_memory(facts, dtype, streamed),
        **calibration,
        **evaluation,
        **dict.fromkeys(smaller, 0),
    }


def reading_memory(facts: ModelFacts, windows: int, context: int, batch: int, dtype: str) -> int:
    """Return the bytes to read windows of text at most `batch` at once: the logits of a pass, those
    of the previous pass, and the values of a block."""
    at_once = min(batch, windows, max(1, MAX_LOGITS // max(context * facts.vocabulary, 1)))
    values = min(windows, 2 * at_once) * facts.vocabulary + at_once * forward_values(facts)
    return WEIGHT_BYTES[dtype] * context * values


def memory_needed(facts: ModelFacts, **sizes: Any) -> int:
    """Return the sum of `memory_parts` in bytes."""
    return sum(memory_parts(facts, **sizes).values())


def spills_to_disk(choice: str, needed: int, available: int) -> bool:
    """Return True if hidden states should be kept on disk.

    Args:
        choice: "auto", "memory" or "disk".
        needed: bytes of the hidden states.
        available: bytes of memory.
    """
    return choice == "disk" or (choice == "auto" and needed > DISK_THRESHOLD * available)


def memory_available() -> int:
    """Return the bytes that this process can still allocate, within the limit of its container."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            unused = int(Path(limit_file).read_text()) - int(Path(usage_file).read_text())
            available = min(available, max(unused, 0))
    return available


def memory_total() -> int:
    """Return the total memory of the machine or its container in bytes."""
    total = int(psutil.virtual_memory().total)
    for limit_file, _ in CGROUPS:
        with suppress(OSError, ValueError):  # no such cgroup, or the limit is "max"
            total = min(total, int(Path(limit_file).read_text()))
    return total


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of the device of a run, in bytes.

    Attributes:
        device: torch device, such as "cpu" or "cuda:0".
        total: memory of the device.
        free: part of it that no process uses.
    """

    device: str
    total: int
    free: int

    @property
    def is_host(self) -> bool:
        """True for the memory of the CPU."""
        return self.device == "cpu"

    @property
    def when_idle(self) -> "DeviceMemory":
        """The memory once our other processes have released a GPU."""
        return self if self.is_host else replace(self, free=self.total)

    def dtype(self, stored: str) -> str:
        """Return the dtype in which weights are loaded: `stored`, but float32 on the CPU."""
        return "float32" if self.is_host else stored

    def host_bytes(self, needed: int) -> int:
        """Return the memory of the host for a run that needs `needed` bytes on this device."""
        return needed if self.is_host else RUNTIME_BYTES

    def require(self, needed: Mapping[str, int], what: str) -> None:
        """Raise `ModelError` if a run does not fit. The arguments are those of `check_memory`."""
        if self.is_host:
            check_memory(needed, self.free, what)
            return
        check_memory(needed, self.total, what, f"the memory of {self.device}")
        total = sum(needed.values())
        if total > self.free:
            raise ModelError(
                f"{self.device} has too little free memory.",
                f"{what} needs about {readable_bytes(total)}; {readable_bytes(self.free)} of "
                f"{readable_bytes(self.total)} are free.",
                "End other programs on this GPU, or choose another device.",
                field="device",
            )
        check_memory(self.host_bytes(total), memory_available(), what)


def streaming_warning(device: DeviceMemory) -> str:
    """Return the warning of a run whose model is streamed."""
    where = "memory" if device.is_host else f"the memory of {device.device}"
    return f"The model does not fit into {where}. Its blocks are read from disk."


def host_memory() -> DeviceMemory:
    """Return the memory of the CPU."""
    return DeviceMemory("cpu", memory_total(), memory_available())


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` is an out-of-memory error of the host or a GPU."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(
        phrase in message
        for phrase in (
            "out of memory",
            "can't allocate memory",
            "cannot allocate memory",
            "not enough memory",
        )
    )


REMEDIES = {  # part of the memory -> (its description, remedy, config field)
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
    "stages": ("the weights of one block at all stages", "Choose a smaller model.", "model"),
    "answers": ("the answers generated at once", "Lower the answer length.", "answer_tokens"),
    "training": ("the training", "Lower the batch size or the sequence length.", "batch"),
    "logits": ("the logits", "Lower the context length or the segments per pass.", "context"),
}


def check_memory(
    needed: int | Mapping[str, int], available: int, what: str, where: str = "memory"
) -> None:
    """Raise `ModelError` if a job does not fit into memory.

    Args:
        needed: bytes, or bytes by part as in `memory_parts`. With parts, the error mentions the
            largest one and its remedy.
        available: bytes that can be allocated.
        what: subject of the error message, such as the title of the model.
        where: name of the memory in the error message.
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
        why += f" Most of it, {readable_bytes(reducible[largest])}, is for {description}."
    raise ModelError(f"{what} does not fit into {where}.", why, do, field=field)
