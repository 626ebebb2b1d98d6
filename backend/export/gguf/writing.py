"""Writing of a saved model as one GGUF file, tensor by tensor. See `types` for the formulas."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType, SpecialVocab, TensorNameMap, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from backend.errors import ConfigError
from backend.export.formats import Layout, read_layout
from backend.export.gguf import types
from backend.export.gguf.architecture import GGUFArchitecture, architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.export.gguf.types import BLOCK, SUPER_BLOCK
from backend.export.reading import StoredLinears, read_layers
from backend.models.block_offload import check_finite
from backend.models.facts import DTYPES
from backend.models.families.stored import (
    GATE_UP,
    IN_BLOCK,
    ONE_EXPERT,
    block_matrices,
    compressed,
    tensor_name,
)
from backend.models.sources.headers import read_config, read_headers, weight_files
from backend.quantization.grid import QuantizedWeight, joined
from backend.quantization.plan import QuantSettings, embedding_search
from backend.quantization.range_search import factors, quantize_embedding
from backend.reporter import Reporter, stop_if_asked

Bytes = NDArray[np.uint8]
HALF, SIXTEEN = BLOCK // 2, 16
EXACT = {torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}  # exact types; F32 for others


def encode_weight(name: str, weight: Tensor, kind: Kind) -> NDArray[np.generic]:
    """Round `weight` [out, in] or [n] to a type.

    Raises:
        ConfigError: a weight is too large for float16.
    """
    values = weight.float().contiguous().numpy()
    if kind == Kind.F32:
        return values
    if kind == Kind.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ConfigError(
                _cannot_store(kind),
                f"{name} has the weight {abs(values).max():.4g}; the maximum is 65504.",
                "Choose BF16.",
                "type",
            )
        return halves
    if kind == Kind.Q6_K:
        settings = QuantSettings(6, BLOCK, "symmetric", embedding_search(6))
        return encode_codes(name, quantize_embedding(weight, settings, torch.float16), kind)
    return quantize(values, kind)


def encode_codes(name: str, layer: QuantizedWeight, kind: Kind) -> NDArray[np.generic]:
    """Encode the codes of a layer as uint8 [out, bytes per row].

    Raises:
        ConfigError: the type cannot store the codes.
    """
    if kind == Kind.F32:
        return layer.dense().numpy()
    if layer.group_size % BLOCK:
        raise ConfigError(
            _cannot_store(kind),
            f"The group size of {name} is not a multiple of {BLOCK}.",
            "Choose F32.",
            "type",
        )
    if kind == Kind.Q6_K:
        return _rows(*_super_blocks(layer))
    blocks = layer.group_size // BLOCK  # [out, groups] -> [out, blocks]
    scale, zero = (
        part.repeat_interleave(blocks, dim=1) for part in (layer.grid.scale, layer.grid.zero)
    )
    if not torch.equal(scale.half().float(), scale):
        raise ConfigError(
            _cannot_store(kind),
            f"A scale of {name} is not a float16 number.",
            "Choose F32, or store the scales in float16.",
            "type",
        )
    q = layer.codes.view(*scale.shape, BLOCK).short()
    d = _half(scale)
    if kind == Kind.Q8_0:
        signed = (q - zero.unsqueeze(-1).short()).to(torch.int8).numpy().view(np.uint8)
        return _rows(d, signed)
    if kind == Kind.Q4_0:
        return _rows(d, _nibbles(q - zero.unsqueeze(-1).short() + 8))
    return _rows(d, _half(-scale * zero), _nibbles(q))


def holds_shared_scales(layer: QuantizedWeight) -> bool:
    """Return True if Q6_K stores the scales of a layer exactly."""
    c, d = factors(layer.grid.scale, layer.codes.shape[1])
    return torch.equal(c * d, layer.grid.scale)


def _super_blocks(layer: QuantizedWeight) -> tuple[Bytes, ...]:
    """Return the parts of Q6_K [out, super-blocks, …]: four low bits, two high bits, c, d.

    Each half of a super-block has four runs of 32 codes. The low bits of runs 1 and 3 share bytes,
    as do those of runs 2 and 4. The high bits of all four runs share bytes.
    """
    rows, columns = layer.codes.shape
    c, d = factors(layer.grid.scale, columns)
    q = (layer.codes.view(*c.shape, -1).short() - layer.grid.zero.unsqueeze(-1).short() + 32).byte()
    runs = q.view(rows, -1, 2, 4, BLOCK)  # [out, super-blocks, halves, runs, 32]
    low, high = runs & 15, (runs >> 4) << torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    pairs = low[..., :2, :] | low[..., 2:, :] << 4
    by_16 = c.repeat_interleave(layer.group_size // SIXTEEN, 1).to(torch.int8)
    blocks = columns // SUPER_BLOCK
    return (
        pairs.reshape(rows, blocks, -1).numpy(),
        high.sum(-2).to(torch.uint8).reshape(rows, blocks, -1).numpy(),
        by_16.view(rows, blocks, -1).numpy().view(np.uint8),
        _half(d[:, :: d.shape[1] // blocks]),
    )


def _cannot_store(kind: Kind) -> str:
    return f"{kind.name} cannot store this model."


def _half(values: Tensor) -> Bytes:
    """Return the float16 bytes [out, blocks, 2] of values [out, blocks]."""
    return values.half().numpy().view(np.uint8).reshape(*values.shape, 2)


def _nibbles(q: Tensor) -> Bytes:
    """Pack codes [out, blocks, 32] in 0 .. 15 into bytes [out, blocks, 16]. The first half of a
    block takes the low bits, the second half the high bits."""
    low, high = q[..., :HALF], q[..., HALF:]
    return (low | (high << 4)).to(torch.uint8).numpy()


def _rows(*parts: Bytes) -> Bytes:
    """Join the parts [out, blocks, …] of all blocks into rows [out, bytes]."""
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)


@dataclass(frozen=True)
class GGUFSource:
    """A parameter to write.

    Attributes:
        name: full name of the parameter.
        shape: shape of the parameter.
        dtype: dtype of the parameter; uint8 for codes.
        source: safetensors file, value, or function that returns the value.
        heads: heads whose rows are reordered; 0 for none.
        shift: number added to the values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Path | Tensor | QuantizedWeight | Callable[[], Tensor | QuantizedWeight]
    heads: int = 0
    shift: float = 0.0

    def read(self) -> Tensor | QuantizedWeight:
        """Read the parameter, with its rows in GGUF order."""
        value = self.source
        if isinstance(value, Path):
            with safe_open(value, "pt") as file:
                value = file.get_tensor(self.name)
        elif not isinstance(value, Tensor | QuantizedWeight):
            value = value()
        if isinstance(value, Tensor) and self.shift:
            return value.float() + self.shift
        if not self.heads:
            return value
        if isinstance(value, Tensor):
            return interleave_heads(value, self.heads)
        return value.with_rows(lambda rows: interleave_heads(rows, self.heads))


def interleave_heads(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of rotary heads for llama.cpp: first row of each half, second row of each
    half, …"""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    folder: Path,
    path: Path,
    type: str,
    packed: bool,
    title: str,
    reporter: Reporter,
    embedding: types.EmbeddingType = "auto",
) -> None:
    """Write the model in `folder` to `path`.

    Args:
        type: type of the linear layers; see `types.choose_type`.
        packed: True if the folder has quantized layers. Their codes are copied, and all other
            tensors keep their precision.
        title: name of the model in the file.
        embedding: type of embedding and head if they are not quantized.

    Raises:
        ConfigError: GGUF does not support the model, its tokenizer or its weights.
        ModelError: the folder is damaged.
    """
    sizes = architecture_of(read_config(folder))
    writer = GGUFWriter(path, sizes.name)
    _add_metadata(writer, folder, sizes)
    writer.add_name(title)
    writer.add_file_type(LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    if type not in types.FLOATS:
        writer.add_quantization_version(2)  # version of GGML's block formats
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == sizes.name)
    names = get_tensor_name_map(architecture, sizes.blocks)
    layout = read_layout(folder) if packed else None
    sources = [(s, _kind(s, type, layout, embedding)) for s in _sources(folder, packed, sizes)]
    for source, kind in sources:
        size = prod(quant_shape_to_byte_shape(source.shape, kind))
        dtype = np.dtype(np.float32)  # dtype of the elements that `shape` counts
        name = source.name if source.name in sizes.factors else _gguf_name(source.name, names)
        writer.add_tensor_info(name, source.shape, dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (source, kind) in enumerate(sources):
        stop_if_asked(reporter)
        reporter.progress(number, len(sources), "Writing tensors")
        value = source.read()
        if isinstance(value, Tensor):
            check_finite(source.name, value)
            writer.write_tensor_data(encode_weight(source.name, value, kind))
        else:
            writer.write_tensor_data(encode_codes(source.name, value, kind))
    writer.close()


def _add_metadata(writer: GGUFWriter, folder: Path, sizes: GGUFArchitecture) -> None:
    """Add sizes and vocabulary to the header."""
    add: dict[type, Callable[[str, Any], None]] = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in sizes.keys.items():
        add[type(value)](f"{sizes.name}.{key}", value)
    vocabulary = vocabulary_of(folder, sizes.vocabulary)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space)
    special = SpecialVocab(folder, load_merges=vocabulary.scores is None, n_vocab=sizes.vocabulary)
    first = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids[:1]
    adds_bos = first == [special.special_token_ids.get("bos")]
    special.add_special_token = {"bos": adds_bos, "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _sources(folder: Path, packed: bool, sizes: GGUFArchitecture) -> Iterator[GGUFSource]:
    """Yield the parameters to write in the order of the files. A tied head is not written."""
    sources = _packed_sources(folder) if packed else _plain_sources(folder)
    for source in _stacked_experts(sources, sizes.experts):
        module = source.name.rpartition(".")[0]
        if sizes.tied and module == "lm_head":
            continue
        heads = next((n for end, n in sizes.rows.items() if module.endswith(end)), 0)
        shift = sizes.norm_shift if module.endswith("norm") else 0.0
        yield replace(source, heads=heads, shift=shift)
    for name, values in sizes.factors.items():
        yield GGUFSource(name, (len(values),), torch.float32, torch.tensor(values))


def _stacked_experts(sources: Iterable[GGUFSource], count: int) -> Iterator[GGUFSource]:
    """Yield the sources with the experts of a block stacked to [experts, out, in] for each
    projection."""
    experts = dict[str, dict[int, GGUFSource]]()
    for source in sources:
        if match := ONE_EXPERT.fullmatch(source.name.removesuffix(".weight")):
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = source
        else:
            yield source
    for name, by_number in experts.items():
        stack = [by_number[number] for number in sorted(by_number)]
        if len(stack) != count or len({(x.shape, x.dtype) for x in stack}) > 1:
            raise ConfigError(
                "This model cannot be written as GGUF.",
                f"{name} needs {count} experts of the same shape and dtype; it has {len(stack)}.",
                "Choose a complete model in which all experts are quantized, or none.",
                "model",
            )
        stem, _, projection = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if projection == GATE_UP else (projection,)
        shape = count, stack[0].shape[0] // len(parts), stack[0].shape[1]
        for number, part in enumerate(parts):
            read = partial(_stack, stack, len(parts), number)
            yield GGUFSource(f"{stem}.{part}.weight", shape, stack[0].dtype, read)


def _stack(experts: Sequence[GGUFSource], parts: int, number: int) -> Tensor | QuantizedWeight:
    """Read all experts and join their part `number` of `parts` parts."""
    values = [expert.read() for expert in experts]
    if layers := [value for value in values if isinstance(value, QuantizedWeight)]:
        return joined([layer.split(parts)[number] for layer in layers])
    return torch.cat([value.chunk(parts)[number] for value in values if isinstance(value, Tensor)])


def _plain_sources(folder: Path) -> Iterator[GGUFSource]:
    family, headers = str(read_config(folder)["model_type"]), read_headers(folder)
    matrices = block_matrices(family, headers)
    experts = [x for x in matrices if tensor_name(x.name) != x.name]
    reader = StoredLinears(folder, experts)
    expert_names = {name for x in experts for name in x.stored.names}
    for x in experts:
        dtype = DTYPES[headers[x.stored.names[0]].dtype]
        read = partial(reader.read, x)
        yield GGUFSource(f"{x.name}.weight", (x.rows, x.columns), getattr(torch, dtype), read)
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in sorted({*file.keys()} - expert_names):
                tensor = file.get_slice(name)
                yield GGUFSource(name, tuple(tensor.get_shape()), tensor[:0].dtype, path)


def _packed_sources(folder: Path) -> Iterator[GGUFSource]:
    layers, unquantized = read_layers(folder)
    for name, layer in layers.items():
        yield GGUFSource(f"{name}.weight", (*layer.codes.shape,), torch.uint8, layer)
    for name, tensor in unquantized.items():
        yield GGUFSource(name, (*tensor.shape,), tensor.dtype, tensor)


def _kind(
    source: GGUFSource, linears: str, layout: Layout | None, embedding: types.EmbeddingType
) -> Kind:
    """Return the type of a tensor. Vectors are float32, codes get a type that can store them, and
    rows that blocks do not divide are float16."""
    if len(source.shape) == 1:
        return Kind.F32
    in_block, columns = IN_BLOCK.fullmatch(source.name), source.shape[-1]
    if in_block and not compressed(in_block[2]):
        return Kind.F32
    if layout and source.dtype == torch.uint8:
        if in_block and len(layout.linears) == 1:
            return Kind[linears]
        kind = types.type_for_codes(
            linears, layout.of(source.name.removesuffix(".weight")), columns
        )
        layer = source.source
        if kind == "Q6_K" and not (
            isinstance(layer, QuantizedWeight) and holds_shared_scales(layer)
        ):
            kind = "Q8_0"
        return Kind[kind]
    if in_block and layout:
        return EXACT.get(source.dtype, Kind.F32)
    kind = linears
    if not in_block:
        dtype = str(source.dtype).removeprefix("torch.")
        kind = types.embedding_type(embedding, linears, bool(layout), dtype)
    return Kind[types.fitting(kind, columns)]


def _gguf_name(name: str, names: TensorNameMap) -> str:
    gguf_name: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if gguf_name is None:
        raise ConfigError(
            "This model cannot be written as GGUF.",
            f"GGUF has no tensor for {name}.",
            field="model",
        )
    return gguf_name
