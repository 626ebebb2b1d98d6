"""Hidden states of a calibration set, block by block, with one block at work at a time.

A decoder block needs more than hidden states: masks, position embeddings, position ids, and some
architectures choose them by layer. They are recorded once, in one pass in which every block is
replaced by the identity: the model's own code prepares the arguments, and no block is computed.
Equal tensors are kept once. Nothing is cached between calls (`use_cache=False`).

The pass also proves the assumption behind it: every block must receive exactly the tensor the
block before it returned. A model that works between its blocks is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from backend.errors import ModelRefused
from backend.models.blocks import decoder_blocks

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Stream:
    """Where the calibration set stands.

    Attributes:
        hidden: one tensor [b, L, d] for each batch: the inputs of block `at`.
        calls: for each block, for each batch, the other arguments of the block.
        dtype: the precision blocks are run in.
        at: index of the block `hidden` goes into.
    """

    hidden: list[Tensor]
    calls: list[list[Call]]
    dtype: torch.dtype
    at: int = 0

    def advance(self, hidden: list[Tensor]) -> None:
        """Takes `hidden`, the outputs of block `at`, as the inputs of the next block."""
        self.hidden, self.at = hidden, self.at + 1


@dataclass
class _Pool:
    """Keeps every distinct tensor once, floating ones in `dtype`; drops key-value caches."""

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
        if id(tensor) not in self.known:  # the pair keeps `tensor` alive, and so its id unique
            cast = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            self.known[id(tensor)] = (tensor, self._kept(cast))
        return self.known[id(tensor)][1]

    def _kept(self, tensor: Tensor) -> Tensor:
        for old in self.kept:
            if old.dtype == tensor.dtype and torch.equal(old, tensor):
                return old
        self.kept.append(tensor)
        return tensor

    def next_batch(self) -> None:
        self.known.clear()


def open_stream(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch: int,
    dtype: torch.dtype | None = None,
) -> Stream:
    """The stream of `input_ids` [N, L] (no padding) before block 0, in batches of `batch` rows.

    Args:
        dtype: precision blocks will be run in; the model's own when None. The model keeps its own.

    Raises:
        ModelRefused: the model changes the hidden states between its blocks.
    """
    blocks = decoder_blocks(model)
    dtype = dtype or next(blocks.parameters()).dtype
    pool, hidden = _Pool(dtype), list[Tensor]()
    calls: list[list[Call]] = [[] for _ in blocks]
    for rows in input_ids.split(batch):
        inputs, arguments = _record(model, blocks, rows.to(model.device))
        hidden.append(inputs.to(dtype))
        for of_block, call in zip(calls, arguments, strict=True):
            of_block.append(pool(call))
        pool.next_batch()
    return Stream(hidden, calls, dtype)


@torch.no_grad()
def run_block(
    model: PreTrainedModel, stream: Stream, index: int, hidden: list[Tensor]
) -> list[Tensor]:
    """What decoder block `index` makes of `hidden`, one [b, L, d] for each batch of the stream.

    The stream stays where it is. Hooks on the block's modules are called; while they are, the
    block's parameters are in the stream's dtype.
    """
    block = decoder_blocks(model)[index]
    with _evaluating(block), _in_dtype(block, stream.dtype):
        return [
            block(states, *args, **kwargs)
            for states, (args, kwargs) in zip(hidden, stream.calls[index], strict=True)
        ]


@torch.no_grad()
def _record(
    model: PreTrainedModel, blocks: nn.ModuleList, rows: Tensor
) -> tuple[Tensor, list[Call]]:
    """Block 0's hidden states [b, L, d] for token ids [b, L], and every block's other arguments."""
    states: list[Tensor] = []
    calls: list[Call] = []

    def identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states.append(hidden_states)
        calls.append((args, kwargs))
        return hidden_states

    with _evaluating(model), _replaced(blocks, identity):
        model.base_model(input_ids=rows, use_cache=False)
    if len(calls) != len(blocks) or any(each is not states[0] for each in states):
        raise ModelRefused(
            f"{type(model).__name__} cannot be run block by block.",
            "It changes the hidden states between its decoder blocks.",
            "Choose a model with a plain stack of decoder blocks.",
            field="model",
        )
    return states[0], calls


@contextmanager
def _replaced(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, every block computes `forward`; an instance attribute hides the class's method."""
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def _in_dtype(block: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the block's floating tensors are cast copies; afterwards the very same as before."""
    tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
    own = [t.data for t in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in zip(tensors, own, strict=True):
            tensor.data = data
