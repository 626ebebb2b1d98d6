"""Block offloading: a *streamed* model has only one decoder block in memory. Its tensors are read
from the model's folder when needed; in between they are placeholders on torch's meta device.

    with resident(model, 3):           block 3 is in memory (no effect on a model fully in memory)
    with all_resident(model):          all blocks are
    override_weights(model, weights)   from now on the layers of block b have weights(b)
    with overridden(model, weights):   the same, temporarily

Writes to a block of a streamed model inside `resident` are lost when the context ends."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.errors import ModelError
from backend.models.blocks import (
    all_finite,
    block_linears,
    block_prefix,
    decoder_blocks,
    replaced_data,
    swap_data,
)
from backend.models.sources.headers import weight_files

Weights = Mapping[str, Tensor]  # module name inside the block -> [out, in]
RESIDENCY = "residency"  # attribute of a streamed model that holds its BlockLoader


class StoredTensors:
    """Tensors in a folder's safetensors files, by their names in the model.

    Args:
        folder: folder of the model.
        names: names of the model's tensors.
        prefix: added to the names in a checkpoint of the base model only.
    """

    def __init__(self, folder: Path, names: set[str], prefix: str) -> None:
        self._locations: dict[str, tuple[Path, str]] = {}  # name -> file, name in the file
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    full_name = name if name in names else f"{prefix}.{name}"
                    self._locations[full_name] = (path, name)

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """Read the tensor `name` to `device`, in the dtype of its placeholder `like`. Raises
        ModelError: the tensor cannot be read, has another shape, or is not finite."""
        path, stored_name = self._locations[name]
        try:
            with safe_open(path, framework="pt") as file:
                # a copy, so that no page of the file stays mapped
                tensor = file.get_tensor(stored_name).to(device, like.dtype, copy=True)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{name} can no longer be read.",
                f"{path.name}: {error}.",
                "Do not change the model's folder while a run reads from it.",
                field="model",
            ) from error
        if tensor.shape != like.shape:
            raise ModelError(
                f"{name} has the shape {list(tensor.shape)}, not {list(like.shape)}.",
                f"{path.name} does not match the model's config.json.",
                "Choose a complete model folder.",
                field="model",
            )
        check_finite(name, tensor)
        return tensor


@dataclass
class BlockLoader:
    """The source of the blocks of a streamed model."""

    stored: StoredTensors  # tensors of the model's folder
    device: torch.device  # device of loaded blocks
    # block index -> weights that replace the stored ones
    overrides: Callable[[int], Weights] = lambda _: {}
    # name, values of a stored parameter -> values to use
    change: Callable[[str, Tensor], Tensor] = lambda _, values: values


def is_streamed(model: PreTrainedModel) -> bool:
    """Return True if blocks of `model` are not in memory."""
    return RESIDENCY in vars(model) and any(p.is_meta for p in decoder_blocks(model).parameters())


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that all values of a parameter are finite. Raises ModelError: `tensor` has non-finite
    values."""
    if not all_finite(tensor):
        raise ModelError(
            f"{name} has values that are not finite.",
            "The file is damaged, or the training run that saved it had diverged.",
            "Choose another copy of the model.",
            field="model",
        )


def stream_from(folder: Path, model: PreTrainedModel, device: torch.device) -> list[str]:
    """Make `model`, whose parameters are placeholders, stream its blocks from `folder`. Returns the
    names of missing weights; if there are any, the model is unusable."""
    model.tie_weights()
    stored = StoredTensors(folder, set(model.state_dict()), model.base_model_prefix)
    blocks, missing = f"{block_prefix(model)}.", []
    for names, tensor in tied_names(model):
        name = next((candidate for candidate in names if candidate in stored), None)
        if name is None:
            missing.append(names[0])
        elif not (name.startswith(blocks) and tensor.is_meta):
            _set(model, names, stored.read(name, tensor, device))
    for name, buffer in model.named_buffers():
        _set(model, [name], buffer.to(device))
    vars(model)[RESIDENCY] = BlockLoader(stored, device)
    return missing


def tied_names(model: PreTrainedModel) -> list[tuple[list[str], Tensor]]:
    """List each tensor of the state dict with all its names; tied tensors have several."""
    names: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(names.values())


def _set(model: nn.Module, names: Sequence[str], tensor: Tensor) -> None:
    """Replace the parameter or buffer with these names by `tensor`."""
    for name in names:
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        if key in module._parameters and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        setattr(module, key, tensor)


@contextmanager
def resident(model: PreTrainedModel, index: int, without: Collection[str] = ()) -> Iterator[None]:
    """Keep decoder block `index` in memory inside the context, except for parameters named in
    `without`. Contexts may be nested. Raises ModelError: a weight cannot be read, or is not
    finite."""
    loader: BlockLoader | None = vars(model).get(RESIDENCY)
    prefix, block = f"{block_prefix(model)}.{index}", decoder_blocks(model)[index]
    placeholders = {f"{prefix}.{name}": p for name, p in block.named_parameters() if p.is_meta}
    placeholders = {name: p for name, p in placeholders.items() if name not in without}
    if loader is None or not placeholders:
        yield
        return
    try:
        for name, placeholder in placeholders.items():
            values = loader.stored.read(name, placeholder, loader.device)
            _set(model, [name], loader.change(name, values))
        _write(model, index, loader.overrides(index))
        yield
    finally:
        for name, placeholder in placeholders.items():
            _set(model, [name], placeholder)


@contextmanager
def all_resident(model: PreTrainedModel, without: Collection[str] = ()) -> Iterator[None]:
    """Keep all decoder blocks in memory; see `resident`."""
    with ExitStack() as stack:
        for index in range(len(decoder_blocks(model))):
            stack.enter_context(resident(model, index, without))
        yield


def override_weights(model: PreTrainedModel, weights: Callable[[int], Weights]) -> None:
    """Replace the weights of the layers of block b by `weights(b)`, [out, in] by module name.

    A model fully in memory is changed immediately, a streamed one whenever a block is read."""
    if is_streamed(model):
        vars(model)[RESIDENCY].overrides = weights
        return
    for index in range(len(decoder_blocks(model))):
        _write(model, index, weights(index))


@contextmanager
def overridden(model: PreTrainedModel, weights: Callable[[int], Weights]) -> Iterator[None]:
    """Inside the context, replace the weights of the layers of block b by `weights(b)`, [out, in]
    by module name. In a model fully in memory, weights in bfloat16 keep their dtype."""
    if is_streamed(model):
        loader: BlockLoader = vars(model)[RESIDENCY]
        previous, loader.overrides = loader.overrides, weights
        try:
            yield
        finally:
            loader.overrides = previous
        return
    replacements = dict[Tensor, Tensor]()
    for index in range(len(decoder_blocks(model))):
        linears = block_linears(model, index)
        replacements |= replaced_data({linears[name]: W for name, W in weights(index).items()})
    with swap_data(replacements):
        yield


def change_parameters(model: PreTrainedModel, change: Callable[[str, Tensor], Tensor]) -> None:
    """Replace the values of each parameter by `change(name, values)`, those of a streamed block
    whenever it is read. Raises the errors of `change` for any parameter."""
    for name, parameter in iterate_parameters(model):
        parameter.copy_(change(name, parameter))
    if RESIDENCY in vars(model):
        vars(model)[RESIDENCY].change = change


def _write(model: PreTrainedModel, index: int, weights: Weights) -> None:
    linears = block_linears(model, index)
    for module, W in weights.items():
        linears[module].write(W)


def iterate_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield name and data of every parameter in model order, with one block in memory at a time.
    Raises ModelError: a parameter has non-finite values."""
    names = [name for name, _ in model.named_parameters()]
    prefix = f"{block_prefix(model)}."

    def block_of(name: str) -> int | None:
        is_in_block = name.startswith(prefix)
        return int(name.removeprefix(prefix).partition(".")[0]) if is_in_block else None

    for index, group in groupby(names, key=block_of):
        with nullcontext() if index is None else resident(model, index):
            for name in group:
                parameter = model.get_parameter(name).detach()
                check_finite(name, parameter)
                yield name, parameter
