"""Temporary changes to a module, as context managers."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StopForwardError(Exception):
    """Ends a forward pass early."""


@contextmanager
def replaced(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace `forward` of every block by an instance attribute; afterwards restore it."""
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to eval mode; afterwards restore the mode of every submodule."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def with_data(others: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Give each tensor other data; afterwards restore its own."""
    own = {tensor: tensor.data for tensor in others}
    try:
        for tensor, data in others.items():
            tensor.data = data
        yield
    finally:
        for tensor, data in own.items():
            tensor.data = data


def in_dtype(block: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Cast the floating-point tensors of a block; afterwards restore the originals."""
    tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
    return with_data({tensor: tensor.data.to(dtype) for tensor in tensors})


def swap_weights(parameters: Mapping[nn.Parameter, Tensor]) -> AbstractContextManager[None]:
    """Replace the data of each parameter, cast to its dtype; afterwards restore the original
    tensors."""
    return with_data({own: other.to(own.dtype) for own, other in parameters.items()})


@contextmanager
def ending_after(layers: Collection[nn.Module]) -> Iterator[Callable[[], None]]:
    """Raise `StopForwardError` in a forward pass when the last of `layers` receives its input; not
    in one that does not come to all of them, as with experts without tokens. Yields what a thread
    calls before each of its passes.

    Hooks registered before run first."""
    seen = threading.local()

    def begin() -> None:
        seen.layers = set()

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen.layers.add(layer)
        if len(seen.layers) == len(layers):
            raise StopForwardError

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield begin


@contextmanager
def swap_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace the submodules of these names by `modules`; afterwards restore them."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)
