"""Changes to a module that end with the `with` block they are made in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StopForwardError(Exception):
    """Ends a forward pass of which nothing more is wanted."""


@contextmanager
def replaced(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, every block computes `forward`; an instance attribute hides the class's method."""
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def in_dtype(block: nn.Module, dtype: torch.dtype) -> Iterator[None]:
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


@contextmanager
def ending_after(layers: Collection[nn.Module]) -> Iterator[None]:
    """A forward pass raises `StopForwardError` once the last of `layers` has been given its input.

    Hooks that were there before see that input first.
    """
    seen: set[nn.Module] = set()

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen.add(layer)
        if len(seen) == len(layers):
            seen.clear()  # for the next batch
            raise StopForwardError

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield


@contextmanager
def swap_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, `modules` stand in the places of those names; afterwards the old ones again."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)


@contextmanager
def swap_weights(parameters: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, each parameter is what it is mapped to, cast to its dtype; afterwards the very same
    as before."""
    own = {parameter: parameter.data for parameter in parameters}
    try:
        for parameter, tensor in parameters.items():
            parameter.data = tensor.to(parameter.dtype)
        yield
    finally:
        for parameter, data in own.items():
            parameter.data = data
