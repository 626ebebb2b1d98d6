"""Uniform access to decoder blocks and their layers (the linears of attention and MLP), their
precision, and context managers that change a module temporarily.

Weights are presented as [out, in]. GPT-2's `Conv1D` stores [in, out]; it is transposed on reading
and writing."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.errors import ModelError
from backend.kernels.speeds import SpeedComparison, choose, pytorch_product
from backend.models.families.stored import compressed


@dataclass(frozen=True)
class LinearWeight:
    """One prunable weight matrix."""

    name: str  # full dotted module name, as in `model.named_modules()`
    block: int  # index of its decoder block
    module: str  # module name inside that block
    layer: nn.Module  # the module, for hooks

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._oriented().shape
        return rows, columns

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return self.shape[1]

    def _oriented(self) -> Tensor:
        """A view of the weight as [out, in]."""
        return turned(self.layer, self.layer.get_parameter("weight").detach())

    def read(self) -> Tensor:
        """Return a float32 copy of the weight [out, in] on the layer's device."""
        return self._oriented().to(torch.float32, copy=True).contiguous()

    def as_stored(self, W: Tensor) -> Tensor:
        """Return a view of `W` [out, in] in the orientation of the stored weight."""
        return turned(self.layer, W)

    def write(self, W: Tensor) -> None:
        """Write `W` [out, in] in place, cast to the layer's dtype. Raises ValueError: `W` has
        another shape."""
        if tuple(W.shape) != self.shape:
            raise ValueError(f"{self.name} is {self.shape}, not {tuple(W.shape)}")
        self._oriented().copy_(W.detach())


def turned(layer: nn.Module, W: Tensor) -> Tensor:
    """Convert between [out, in] and the orientation in which the layer stores its weight: a
    transposed view for `Conv1D`, else `W`."""
    return W.T if isinstance(layer, Conv1D) else W


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of `model`, in order. Raises ModelError: the model has no list of
    blocks."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ModelError(
        f"{type(model).__name__} cannot be compressed.",
        f"No list of {depth} decoder blocks was found in it.",
        "Choose a decoder-only model such as LLaMA, Qwen, Mistral, Gemma, Phi, OPT or GPT-2.",
        field="model",
    )


def block_prefix(model: PreTrainedModel) -> str:
    """The dotted name of the list of decoder blocks, such as model.layers."""
    blocks = decoder_blocks(model)
    return next(name for name, module in model.named_modules() if module is blocks)


def block_linears(model: PreTrainedModel, index: int) -> dict[str, LinearWeight]:
    """Module name inside block `index` -> layer, in the order of the model's definition.

    Only layers of attention and MLP: see `compressed`."""
    block, prefix = decoder_blocks(model)[index], f"{block_prefix(model)}.{index}"
    return {
        module: LinearWeight(f"{prefix}.{module}", index, module, layer)
        for module, layer in block.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and compressed(module)
    }


def all_linears(model: PreTrainedModel) -> list[LinearWeight]:
    """The layers of all blocks, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]


def resolve_dtype(precision: str, device: torch.device) -> str:
    """Return `precision`; for "auto", the faster of "bfloat16" and "float32" on `device`."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def all_finite(tensor: Tensor) -> bool:
    """Return True if no value is infinite or NaN.

    Checks minimum and maximum, which are not finite if any value is not: one pass without a copy,
    40 times as fast as `isfinite`."""
    if not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def computes_bfloat16(device: torch.device) -> bool:
    """Return True if the device computes bfloat16 faster than float32."""
    if device.type == "cpu":
        return precision_choice().fastest == "bfloat16"
    module = getattr(torch, device.type, None)  # none for placeholders ("meta")
    return bool(module and module.is_bf16_supported(including_emulation=False))


@lru_cache
def precision_choice() -> SpeedComparison:
    """Choose between float32 and bfloat16 for products of PyTorch on this CPU."""
    runs = {name: pytorch_product(name) for name in ("float32", "bfloat16")}
    return choose("forward precision", runs)


def to_bfloat16(model: nn.Module) -> None:
    """Cast all parameters. Buffers are unchanged, because rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


class StopForwardError(Exception):
    """Ends a forward pass early."""


@contextmanager
def swap_forward(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the `forward` method of every block; afterward restore it."""
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to eval mode; afterward restore the mode of every submodule."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


@contextmanager
def swap_data(new_data: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Replace the data of each tensor; afterward restore the original data."""
    originals = {tensor: tensor.data for tensor in new_data}
    try:
        for tensor, data in new_data.items():
            tensor.data = data
        yield
    finally:
        for tensor, data in originals.items():
            tensor.data = data


def replaced_data(weights: Mapping[LinearWeight, Tensor]) -> dict[Tensor, Tensor]:
    """Return the parameter of each layer with the data that gives it the weight [out, in]. Weights
    keep the dtype bfloat16; otherwise they are converted to the dtype of the layer."""
    data = dict[Tensor, Tensor]()
    for linear, W in weights.items():
        parameter = linear.layer.get_parameter("weight")
        dtype = W.dtype if W.dtype == torch.bfloat16 else parameter.dtype
        data[parameter] = linear.as_stored(W).to(dtype)
    return data


def in_dtype(block: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Cast the floating-point tensors of a block; afterward restore the originals."""
    tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
    return swap_data({tensor: tensor.data.to(dtype) for tensor in tensors})


def swap_weights(parameters: Mapping[nn.Parameter, Tensor]) -> AbstractContextManager[None]:
    """Replace the data of each parameter, cast to its dtype; afterward restore the original
    tensors."""
    return swap_data({parameter: W.to(parameter.dtype) for parameter, W in parameters.items()})


@contextmanager
def stop_when_reached(layers: Collection[nn.Module]) -> Iterator[Callable[[], None]]:
    """Raise `StopForwardError` in a forward pass when the last of `layers` receives its input.

    A pass that does not reach all of them, such as experts without tokens, runs to its end. Hooks
    that were registered earlier run first. Yields a function that a thread has to call before each
    of its passes."""
    thread_state = threading.local()

    def start_pass() -> None:
        thread_state.reached = set()

    def on_input(layer: nn.Module, args: tuple[Any, ...]) -> None:
        thread_state.reached.add(layer)
        if len(thread_state.reached) == len(layers):
            raise StopForwardError

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(on_input).remove)
        yield start_pass


@contextmanager
def swap_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace submodules by `modules` (name -> module); afterward restore them."""
    originals = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)
