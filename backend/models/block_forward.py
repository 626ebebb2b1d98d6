"""Propagate the hidden states of a calibration set through the model, one block at a time.

The other arguments of the blocks (masks, positions) are recorded in one forward pass with every
block replaced by the identity: the model's own code prepares them. A model with operations between
its blocks is rejected. Some blocks return a tuple that begins with the hidden states.

Hidden states between two blocks are stored in memory, or in a file, which is unlinked, so that its
space is freed with the object, even after a kill.
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
    ending_after,
    eval_mode,
    in_dtype,
    replaced,
)
from backend.models.memory import BATCHES, SMALL_BLOCK
from backend.models.threads import side_by_side

Call = tuple[tuple[Any, ...], dict[str, Any]]
_PARTS: dict[type[nn.Module], int] = {}  # class of blocks -> length of the tuple it returns, or 0


class HiddenStates(Protocol):
    """Hidden states [b, L, d], batch by batch."""

    def append(self, states: Tensor, /) -> None: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...


NewBatches = Callable[[], HiddenStates]  # creates an empty container


class HiddenStatesOnDisk:
    """Batches in a file in `folder`; read back bit-identical, to their original device."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this object)
        self._like: list[Tensor] = []  # placeholders without memory: shape and dtype
        self._device = torch.device("cpu")

    def append(self, states: Tensor, /) -> None:
        self._device = states.device
        self._like.append(torch.empty_like(states, device="meta"))
        self._file.seek(0, 2)
        self._file.write(_bytes_of(states.detach().cpu().contiguous()))

    def __iter__(self) -> Iterator[Tensor]:
        place = 0
        for like in self._like:
            states = torch.empty_like(like, device="cpu", memory_format=torch.contiguous_format)
            self._file.seek(place)
            place += self._file.readinto(_bytes_of(states))
            yield states.to(self._device)

    def __len__(self) -> int:
        return len(self._like)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def batches_in(folder: Path | None) -> NewBatches:
    """A factory of containers: files in `folder`, or lists in memory if it is None."""
    return list if folder is None else partial(HiddenStatesOnDisk, folder)


@dataclass
class BlockStream:
    """The state of the calibration set before a block."""

    hidden: HiddenStates  # one tensor [b, L, d] for each batch: the inputs of block `at`
    calls: list[list[Call]]  # for each block, for each batch, the other arguments of the block
    dtype: torch.dtype  # the dtype blocks are run in
    new: NewBatches = list  # creates the container for the outputs of a block
    at: int = 0  # index of the block `hidden` goes into

    def advance(self, hidden: HiddenStates) -> None:
        """Use `hidden`, the outputs of block `at`, as the inputs of the next block."""
        self.hidden, self.at = hidden, self.at + 1


@dataclass
class _Pool:
    """Stores each distinct tensor once, floating-point ones in `dtype`; drops key-value caches."""

    dtype: torch.dtype
    kept: list[Tensor] = field(default_factory=list)
    known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            return type(value)(self(item) for item in value)
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        return None if isinstance(value, Cache) else value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.known:  # the pair keeps `tensor` alive, so its id stays unique
            cast = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            self.known[id(tensor)] = (tensor, self._kept(cast))
        return self.known[id(tensor)][1]

    def _kept(self, tensor: Tensor) -> Tensor:
        for old in self.kept:
            if old.dtype == tensor.dtype and torch.equal(old, tensor):
                return old
        self.kept.append(tensor)
        return tensor


def open_stream(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    dtype: torch.dtype | None = None,
    new: NewBatches = list,
) -> BlockStream:
    """The stream of `input_ids` [N, L] (no padding) before block 0, in batches of `batch` rows.
    `dtype`: the dtype blocks will be run in; None: the dtype of the model, which is not changed.
    `new`: creates the container for the hidden states between two blocks. Raises ModelError: the
    model changes the hidden states between its blocks."""
    blocks = decoder_blocks(model)
    dtype = dtype or next(blocks.parameters()).dtype
    pool, hidden = _Pool(dtype), new()
    calls: list[list[Call]] = [[] for _ in blocks]
    for rows in input_ids.split(batch):
        inputs, arguments = _record(model, blocks, rows.to(model.device))
        hidden.append(inputs.to(dtype))
        for block_calls, call in zip(calls, arguments, strict=True):
            block_calls.append(pool(call))
        pool.known.clear()
    return BlockStream(hidden, calls, dtype, new)


@torch.no_grad()
def run_block(
    model: PreTrainedModel,
    stream: BlockStream,
    index: int,
    hidden: HiddenStates,
    safe_point: Callable[[], None] = lambda: None,
    until: Collection[nn.Module] = (),
) -> HiddenStates:
    """The outputs of decoder block `index` for `hidden`, one [b, L, d] per batch of the stream.

    The stream is not advanced. Hooks on the block's modules are called while the block is in memory
    and its parameters are in the stream's dtype; batches of a small block may be run `side_by_side`
    (`BATCHES`). `safe_point`: called before each batch; may raise to end the pass. `until`: layers
    with hooks, if only the hooks are needed: the forward pass of a batch ends at the input of the
    last of them, and there are no outputs."""
    block, outputs = decoder_blocks(model)[index], stream.new()

    with (
        resident(model, index),
        eval_mode(block),
        in_dtype(block, stream.dtype),
        ending_after(until) as begin,
    ):

        def one(batch: tuple[Tensor, Call]) -> Tensor | None:
            states, (args, kwargs) = batch
            begin()
            with suppress(StopForwardError):
                return _states(block(states, *args, **kwargs))
            return None

        batches, count = zip(hidden, stream.calls[index], strict=True), _at_once(block)
        while some := [*islice(batches, count)]:
            for _ in some:
                safe_point()
            for states in side_by_side(one, some):
                if states is not None:
                    outputs.append(states)
    return outputs


def _at_once(block: nn.Module) -> int:
    """How many batches to run side by side: one of a large block, whose products keep all cores
    busy, and whose activations would need the memory several times."""
    threads, first = torch.get_num_threads(), next(block.parameters())
    small = sum(x.numel() for x in block.parameters()) <= SMALL_BLOCK
    alike = first.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return threads if small and alike and threads <= BATCHES else 1


def even_batch(model: PreTrainedModel, rows: int, batch: int) -> int:
    """How many of `rows` to put into a batch, at most `batch`, so that those that are run side by
    side (`run_block`) are of one size: no core waits for a larger one."""
    with resident(model, 0):  # as it is when it is run
        at_once = _at_once(decoder_blocks(model)[0])
    rounds = max(1, -(-rows // (batch * at_once)))
    return max(1, -(-rows // (rounds * at_once)))


@contextmanager
def block_of_weights(
    model: PreTrainedModel, stream: BlockStream, index: int
) -> Iterator[Callable[[Mapping[str, Tensor], Tensor, Call], Tensor]]:
    """Decoder block `index` as a function of the weights of its linears, to differentiate by them.

    The function takes module name -> weights [out, in], the inputs [b, L, d] of a batch and the
    block's other arguments for it, and returns the outputs [b, L, d]."""
    block, linears = decoder_blocks(model)[index], block_linears(model, index)

    def forward(weights: Mapping[str, Tensor], states: Tensor, call: Call) -> Tensor:
        args, kwargs = call
        own = {f"{m}.weight": linears[m].as_stored(W).to(stream.dtype) for m, W in weights.items()}
        return _states(functional_call(block, own, (states, *args), kwargs))

    with resident(model, index), eval_mode(block), in_dtype(block, stream.dtype):
        yield forward


@torch.no_grad()
def each_logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    new: NewBatches = list,
    tick: Callable[[float], None] = lambda _: None,
) -> Iterator[Tensor]:
    """The model's logits [b, L, V] for `input_ids` [N, L], batch by batch.

    A whole model runs batch by batch. A streamed model reads each block once and runs all batches
    through it before the next; the head runs batch by batch. `new`: creates the container for the
    hidden states of a streamed model. `tick`: called with the completed share of the work for every
    batch; may raise to cancel."""
    if is_streamed(model):
        yield from _logits_by_block(model, input_ids, batch, new, tick)
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
    new: NewBatches,
    tick: Callable[[float], None],
) -> Iterator[Tensor]:
    stream = open_stream(model, input_ids, batch, new=new)
    hidden, stream.hidden = stream.hidden, []
    blocks, done = decoder_blocks(model), count()
    total = (len(blocks) + 1) * len(hidden)

    def safe_point() -> None:
        tick(next(done) / total)

    for index in range(len(blocks)):
        hidden = run_block(model, stream, index, hidden, safe_point)
    for rows, states in zip(input_ids.split(batch), hidden, strict=True):
        safe_point()
        yield after_blocks(model, rows.to(model.device), states)
    tick(1.0)


def after_blocks(model: PreTrainedModel, rows: Tensor, hidden: Tensor) -> Tensor:
    """Logits [b, L, V] of token ids [b, L], given the outputs `hidden` of the last block.

    The model's own forward pass runs with every block returning `hidden`."""
    output = _as_output(model)(hidden)
    with replaced(decoder_blocks(model), lambda *args, **kwargs: output):
        return model(input_ids=rows, use_cache=False).logits


@torch.no_grad()
def _record(
    model: PreTrainedModel, blocks: nn.ModuleList, rows: Tensor
) -> tuple[Tensor, list[Call]]:
    """The inputs [b, L, d] of block 0 for token ids [b, L], and all blocks' other arguments."""
    states: list[Tensor] = []
    calls: list[Call] = []
    as_output = _as_output(model)

    def identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states.append(hidden_states)
        calls.append((args, kwargs))
        return as_output(hidden_states)

    with eval_mode(model), replaced(blocks, identity):
        model.base_model(input_ids=rows, use_cache=False)
    if len(calls) != len(blocks) or any(each is not states[0] for each in states):
        raise ModelError(
            f"{type(model).__name__} cannot be run block by block.",
            "It changes the hidden states between its decoder blocks.",
            "Choose a model with a sequential stack of decoder blocks.",
            field="model",
        )
    return states[0], calls


def _states(output: Any) -> Tensor:
    """The hidden states in what a block returns."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


@torch.no_grad()
def _as_output(model: PreTrainedModel) -> Callable[[Tensor], Any]:
    """Hidden states -> what a block of `model` returns for them; found by running the first block
    on one token, once for each class of blocks."""
    block = decoder_blocks(model)[0]
    if type(block) not in _PARTS:
        seen: list[Any] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(output)
            raise StopForwardError

        hook = block.register_forward_hook(stop)
        try:
            with resident(model, 0), eval_mode(model), suppress(StopForwardError):
                ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
                model.base_model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        _PARTS[type(block)] = 0 if isinstance(seen[0], Tensor) else len(seen[0])
    parts = _PARTS[type(block)]
    return lambda hidden: (hidden, *[None] * (parts - 1)) if parts else hidden
