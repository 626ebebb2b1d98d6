"""Uniform access to decoder blocks and their linears, of attention and MLP; the precision they are
run in; temporary changes to a module, as context managers.

Weights are presented as [out, in]; GPT-2's `Conv1D` stores [in, out] and is transposed on reading
and writing."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from backend.errors import ModelError
from backend.models.families.stored import compressed


@dataclass(frozen=True)
class LinearWeight:
    """One prunable weight matrix."""

    name: str  # full dotted module name, as in `model.named_modules()`
    block: int  # index of its decoder block
    module: str  # its name inside that block
    layer: nn.Module  # the module itself, for hooks

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self._oriented().shape
        return rows, columns

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.shape[1]

    def _oriented(self) -> Tensor:
        """A view of the layer's weight as [out, in]."""
        return turned(self.layer, self.layer.get_parameter("weight").detach())

    def read(self) -> Tensor:
        """A float32 copy of the weight [out, in] on the layer's device."""
        return self._oriented().to(torch.float32, copy=True).contiguous()

    def as_stored(self, W: Tensor) -> Tensor:
        """`W` [out, in] in the orientation the layer stores."""
        return turned(self.layer, W)

    def write(self, W: Tensor) -> None:
        """Write `W` [out, in] in place, cast to the layer's dtype. Raises ValueError: `W` has
        another shape."""
        if tuple(W.shape) != self.shape:
            raise ValueError(f"{self.name} is {self.shape}, not {tuple(W.shape)}")
        self._oriented().copy_(W.detach())


def turned(layer: nn.Module, W: Tensor) -> Tensor:
    """A view of weights [out, in] as the layer stores them, or of those it stores as [out, in]."""
    return W.T if isinstance(layer, Conv1D) else W


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of `model`, in order. Raises ModelError: no list of blocks was found."""
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
    """The dotted name of the list of decoder blocks: model.layers."""
    blocks = decoder_blocks(model)
    return next(name for name, module in model.named_modules() if module is blocks)


def block_linears(model: PreTrainedModel, index: int) -> dict[str, LinearWeight]:
    """Module name inside block `index` -> its linear, in the order of the model's definition.

    Only attention and MLP: see `compressed`."""
    block, prefix = decoder_blocks(model)[index], f"{block_prefix(model)}.{index}"
    return {
        module: LinearWeight(f"{prefix}.{module}", index, module, layer)
        for module, layer in block.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and compressed(module)
    }


def all_linears(model: PreTrainedModel) -> list[LinearWeight]:
    """The linears of all blocks, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]


def resolve_dtype(precision: str, device: torch.device) -> str:
    """`precision`, or for "auto" the fastest one on `device`: "bfloat16" or "float32"."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or not a number. One pass without a copy: both show in the
    extremes, and 40 times as fast as `isfinite`."""
    if not tensor.numel():
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(unit) for unit in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM


def to_bfloat16(model: nn.Module) -> None:
    """Cast all parameters; buffers stay unchanged, since rotary frequencies are float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


class StopForwardError(Exception):
    """Ends a forward pass early."""


@contextmanager
def replaced(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace `forward` of every block by an instance attribute; afterward restore it."""
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
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def with_data(others: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Give each tensor other data; afterward restore its own."""
    own = {tensor: tensor.data for tensor in others}
    try:
        for tensor, data in others.items():
            tensor.data = data
        yield
    finally:
        for tensor, data in own.items():
            tensor.data = data


def in_dtype(block: nn.Module, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Cast the floating-point tensors of a block; afterward restore the originals."""
    tensors = [t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point()]
    return with_data({tensor: tensor.data.to(dtype) for tensor in tensors})


def swap_weights(parameters: Mapping[nn.Parameter, Tensor]) -> AbstractContextManager[None]:
    """Replace the data of each parameter, cast to its dtype; afterward restore the original
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
    """Replace the submodules of these names by `modules`; afterward restore them."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)
