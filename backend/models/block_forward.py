"""Propagation of a calibration set's hidden states through a model, one block at a time.

The other arguments of the blocks (masks, positions) come from the model's own code: they are
recorded in one forward pass in which every block is replaced by the identity. A model with
operations between its blocks is rejected. Some blocks return a tuple that begins with the hidden
states.

Hidden states between two blocks are stored in memory or in an unlinked file, whose space is freed
with the object, even after a kill.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from backend.errors import ModelError
from backend.models.block_offload import is_streamed, resident
from backend.models.blocks import (
    StopForwardError,
    block_linears,
    decoder_blocks,
    eval_mode,
    in_dtype,
    stop_when_reached,
    swap_forward,
)
from backend.models.memory import MAX_PARALLEL_BATCHES, SMALL_BLOCK_WEIGHTS
from backend.models.threads import parallel_map

Call = tuple[tuple[Any, ...], dict[str, Any]]
_TUPLE_LENGTHS: dict[type[nn.Module], int] = {}  # block class -> length of its output; 0: a tensor


class HiddenStates(Protocol):
    """A container of hidden states, one tensor [b, L, d] per batch."""

    def append(self, states: Tensor, /) -> None: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...


NewBatches = Callable[[], HiddenStates]  # returns an empty container


class HiddenStatesOnDisk:
    """Hidden states in a file in `folder`, restored bit-identical on their original device."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this object)
        self._placeholders: list[Tensor] = []  # meta tensors with shape and dtype of each batch
        self._device = torch.device("cpu")

    def append(self, states: Tensor, /) -> None:
        self._device = states.device
        self._placeholders.append(torch.empty_like(states, device="meta"))
        self._file.seek(0, 2)
        self._file.write(_bytes_view(states.detach().cpu().contiguous()))

    def __iter__(self) -> Iterator[Tensor]:
        offset = 0
        for placeholder in self._placeholders:
            states = torch.empty(placeholder.shape, dtype=placeholder.dtype, device="cpu")
            self._file.seek(offset)
            offset += self._file.readinto(_bytes_view(states))
            yield states.to(self._device)

    def __len__(self) -> int:
        return len(self._placeholders)


def _bytes_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def batches_in(folder: Path | None) -> NewBatches:
    """A factory of hidden-state containers: files in `folder`, or lists in memory if None."""
    return list if folder is None else partial(HiddenStatesOnDisk, folder)


@dataclass
class BlockStream:
    """A calibration set on its way through the blocks.

    Attributes:
        hidden: inputs of block `index`, one tensor [b, L, d] per batch.
        calls: for each block and each batch, the other arguments of the block.
        dtype: dtype in which blocks run.
        new_batches: creates the container for the outputs of a block.
        index: index of the next block.
    """

    hidden: HiddenStates
    calls: list[list[Call]]
    dtype: torch.dtype
    new_batches: NewBatches = list
    index: int = 0

    def advance(self, hidden: HiddenStates) -> None:
        """Use `hidden`, the outputs of block `index`, as the inputs of the next block."""
        self.hidden, self.index = hidden, self.index + 1


@dataclass
class _TensorPool:
    """Stores equal tensors once, floating-point ones in `dtype`; drops key-value caches."""

    dtype: torch.dtype
    unique: list[Tensor] = field(default_factory=list)
    # id of a tensor -> the tensor, which keeps the id from being reused, and its pooled equivalent
    by_id: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._pooled(value)
        if isinstance(value, tuple | list):
            return type(value)(self(item) for item in value)
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return None if isinstance(value, Cache) else value

    def _pooled(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.by_id:
            cast = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            self.by_id[id(tensor)] = (tensor, self._deduplicate(cast))
        return self.by_id[id(tensor)][1]

    def _deduplicate(self, tensor: Tensor) -> Tensor:
        for stored in self.unique:
            if stored.dtype == tensor.dtype and torch.equal(stored, tensor):
                return stored
        self.unique.append(tensor)
        return tensor


def open_stream(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    dtype: torch.dtype | None = None,
    new_batches: NewBatches = list,
) -> BlockStream:
    """Compute the inputs of block 0 and the other arguments of all blocks.

    Args:
        model: model to run; it is not changed.
        input_ids: calibration set [N, L], without padding.
        batch: rows per batch.
        dtype: dtype in which blocks will run; None: the dtype of the model.
        new_batches: creates the container for the hidden states between two blocks.

    Raises:
        ModelError: the model changes the hidden states between its blocks.
    """
    blocks = decoder_blocks(model)
    dtype = dtype or next(blocks.parameters()).dtype
    pool, hidden = _TensorPool(dtype), new_batches()
    calls: list[list[Call]] = [[] for _ in blocks]
    for rows in input_ids.split(batch):
        inputs, arguments = _record(model, blocks, rows.to(model.device))
        hidden.append(inputs.to(dtype))
        for block_calls, call in zip(calls, arguments, strict=True):
            block_calls.append(pool(call))
        pool.by_id.clear()
    return BlockStream(hidden, calls, dtype, new_batches)


@torch.no_grad()
def run_block(
    model: PreTrainedModel,
    stream: BlockStream,
    index: int,
    hidden: HiddenStates,
    safe_point: Callable[[], None] = lambda: None,
    until: Collection[nn.Module] = (),
) -> HiddenStates:
    """Run decoder block `index` on `hidden`; return its outputs, one [b, L, d] per batch.

    The stream is not advanced. Hooks on the block's modules are called while the block is in memory
    and its parameters are in the stream's dtype. Up to `MAX_PARALLEL_BATCHES` batches of a small
    block run `parallel_map`.

    Args:
        model: model to run.
        stream: calibration set, for the other arguments of the block.
        index: index of the block.
        hidden: inputs of the block, one [b, L, d] per batch.
        safe_point: called before each batch; may raise an error to end the pass.
        until: layers with hooks, if only the hooks are needed. The forward pass of a batch ends at
            the input of the last of these layers, and there are no outputs.
    """
    block, outputs = decoder_blocks(model)[index], stream.new_batches()

    with (
        resident(model, index),
        eval_mode(block),
        in_dtype(block, stream.dtype),
        stop_when_reached(until) as start_pass,
    ):

        def run_batch(batch: tuple[Tensor, Call]) -> Tensor | None:
            states, (args, kwargs) = batch
            start_pass()
            with suppress(StopForwardError):
                return _hidden_states(block(states, *args, **kwargs))
            return None

        batches, count = zip(hidden, stream.calls[index], strict=True), _parallel_batches(block)
        while parallel := [*islice(batches, count)]:
            for _ in parallel:
                safe_point()
            for states in parallel_map(run_batch, parallel):
                if states is not None:
                    outputs.append(states)
    return outputs


def _parallel_batches(block: nn.Module) -> int:
    """Number of batches to run in parallel. One for a large block: its products keep all cores
    busy, and each batch would need memory for its activations."""
    threads, device = torch.get_num_threads(), next(block.parameters()).device
    is_small = sum(x.numel() for x in block.parameters()) <= SMALL_BLOCK_WEIGHTS
    # autocast is a setting of the thread, which worker threads do not inherit
    is_plain_cpu = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return threads if is_small and is_plain_cpu and threads <= MAX_PARALLEL_BATCHES else 1


def balanced_batch_size(model: PreTrainedModel, rows: int, batch: int) -> int:
    """Number of `rows` per batch, at most `batch`, such that batches that run in parallel
    (`run_block`) have equal sizes and no core waits for a larger batch."""
    with resident(model, 0):  # the placeholders of a streamed model are on another device
        parallel = _parallel_batches(decoder_blocks(model)[0])
    rounds = max(1, -(-rows // (batch * parallel)))
    return max(1, -(-rows // (rounds * parallel)))


@contextmanager
def block_as_function(
    model: PreTrainedModel, stream: BlockStream, index: int
) -> Iterator[Callable[[Mapping[str, Tensor], Tensor, Call], Tensor]]:
    """Provide decoder block `index` as a differentiable function of the weights of its layers.

    The function takes weights [out, in] by module name, the inputs [b, L, d] of a batch and the
    block's other arguments for that batch, and returns the outputs [b, L, d]."""
    block, linears = decoder_blocks(model)[index], block_linears(model, index)

    def forward(weights: Mapping[str, Tensor], states: Tensor, call: Call) -> Tensor:
        args, kwargs = call
        parameters = {
            f"{module}.weight": linears[module].as_stored(W).to(stream.dtype)
            for module, W in weights.items()
        }
        return _hidden_states(functional_call(block, parameters, (states, *args), kwargs))

    with resident(model, index), eval_mode(block), in_dtype(block, stream.dtype):
        yield forward


@torch.no_grad()
def logit_batches(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    new_batches: NewBatches = list,
    tick: Callable[[float], None] = lambda _: None,
) -> Iterator[Tensor]:
    """Yield the model's logits [b, L, V] batch by batch.

    A streamed model reads each block once and runs all batches through it before it reads the next.

    Args:
        model: model to run.
        input_ids: token ids [N, L].
        batch: rows per batch.
        new_batches: creates the container for the hidden states of a streamed model.
        tick: called with the completed share of the work for every batch; may raise an error to
            cancel.
    """
    if is_streamed(model):
        yield from _logits_by_block(model, input_ids, batch, new_batches, tick)
        return
    for start in range(0, len(input_ids), batch):
        tick(start / len(input_ids))
        rows = input_ids[start : start + batch].to(model.device)
        yield model(input_ids=rows, use_cache=False).logits
    tick(1.0)


def _logits_by_block(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    new_batches: NewBatches,
    tick: Callable[[float], None],
) -> Iterator[Tensor]:
    stream = open_stream(model, input_ids, batch, new_batches=new_batches)
    hidden, stream.hidden = stream.hidden, []
    blocks, completed = decoder_blocks(model), count()
    total = (len(blocks) + 1) * len(hidden)

    def safe_point() -> None:
        tick(next(completed) / total)

    for index in range(len(blocks)):
        hidden = run_block(model, stream, index, hidden, safe_point)
    for rows, states in zip(input_ids.split(batch), hidden, strict=True):
        safe_point()
        yield after_blocks(model, rows.to(model.device), states)
    tick(1.0)


def after_blocks(model: PreTrainedModel, rows: Tensor, hidden: Tensor) -> Tensor:
    """Compute the logits [b, L, V] of token ids [b, L] from the outputs `hidden` of the last block.

    Runs the model's own forward pass with every block returning `hidden`, in the dtype of the head:
    the last norm of some families, such as Gemma, keeps the dtype of its input."""
    head = getattr(model.get_output_embeddings(), "weight", hidden)
    output = _output_converter(model)(hidden.to(head.dtype))
    with swap_forward(decoder_blocks(model), lambda *args, **kwargs: output):
        return model(input_ids=rows, use_cache=False).logits


@torch.no_grad()
def _record(
    model: PreTrainedModel, blocks: nn.ModuleList, rows: Tensor
) -> tuple[Tensor, list[Call]]:
    """Record the inputs [b, L, d] of block 0 for token ids [b, L], and the other arguments of all
    blocks."""
    inputs: list[Tensor] = []
    calls: list[Call] = []
    convert_output = _output_converter(model)

    def identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs.append(hidden_states)
        calls.append((args, kwargs))
        return convert_output(hidden_states)

    with eval_mode(model), swap_forward(blocks, identity):
        model.base_model(input_ids=rows, use_cache=False)
    if len(calls) != len(blocks) or any(states is not inputs[0] for states in inputs):
        raise ModelError(
            f"{type(model).__name__} cannot be run block by block.",
            "It changes the hidden states between its decoder blocks.",
            "Choose a model with a sequential stack of decoder blocks.",
            field="model",
        )
    return inputs[0], calls


def _hidden_states(output: Any) -> Tensor:
    """The hidden states in the output of a block."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


@torch.no_grad()
def _output_converter(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    """A function that converts hidden states to the output format of a block: a tensor or a tuple.
    Detected by running the first block on one token, once per class of blocks."""
    block = decoder_blocks(model)[0]
    if type(block) not in _TUPLE_LENGTHS:
        outputs: list[Any] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output)
            raise StopForwardError

        hook = block.register_forward_hook(stop)
        try:
            with resident(model, 0), eval_mode(model), suppress(StopForwardError):
                ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
                model.base_model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        _TUPLE_LENGTHS[type(block)] = 0 if isinstance(outputs[0], Tensor) else len(outputs[0])
    length = _TUPLE_LENGTHS[type(block)]
    return lambda hidden: (hidden, *[None] * (length - 1)) if length else hidden
