"""Write a saved model as one GGUF file, tensor by tensor. See `types` for the formulas of the
types."""

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
    together,
)
from backend.models.sources.headers import read_config, read_headers, weight_files
from backend.quantization.grid import QuantizedWeight, joined
from backend.quantization.plan import QuantSettings, embedding_search
from backend.quantization.range_search import factors, quantize_embedding
from backend.reporter import Reporter, stop_if_asked

Bytes = NDArray[np.uint8]
HALF, SIXTEEN = BLOCK // 2, 16
EXACT = {torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}  # a dtype as it is; else F32


def rounded(name: str, weight: Tensor, kind: Kind) -> NDArray[np.generic]:
    """`weight` [out, in] or [n], rounded; `ConfigError` if one is too large for float16."""
    values = weight.float().contiguous().numpy()
    if kind == Kind.F32:
        return values
    if kind == Kind.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ConfigError(
                _unfit(kind),
                f"{name} has the weight {abs(values).max():.4g}, and 65504 is the largest.",
                "Choose BF16.",
                "type",
            )
        return halves
    if kind == Kind.Q6_K:
        of_six = QuantSettings(6, BLOCK, "symmetric", embedding_search(6))
        return carried(name, quantize_embedding(weight, of_six, torch.float16), kind)
    return quantize(values, kind)


def carried(name: str, layer: QuantizedWeight, kind: Kind) -> NDArray[np.generic]:
    """The codes of a layer: uint8 [out, bytes of a row]; `ConfigError` if they do not fit."""
    if kind == Kind.F32:
        return layer.dense().numpy()
    if layer.group_size % BLOCK:
        raise ConfigError(
            _unfit(kind), f"Rows of {name} are no multiple of {BLOCK}.", "Choose F32.", "type"
        )
    if kind == Kind.Q6_K:
        return _rows(*_super_blocks(layer))
    blocks = layer.group_size // BLOCK  # [out, groups] -> [out, blocks]
    scale, zero = (
        part.repeat_interleave(blocks, dim=1) for part in (layer.grid.scale, layer.grid.zero)
    )
    if not torch.equal(scale.half().float(), scale):
        raise ConfigError(
            _unfit(kind),
            f"A scale of {name} is no float16 number.",
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
    """Whether Q6_K holds the scales of a layer exactly."""
    c, d = factors(layer.grid.scale, layer.codes.shape[1])
    return torch.equal(c * d, layer.grid.scale)


def _super_blocks(layer: QuantizedWeight) -> tuple[Bytes, ...]:
    """The parts of Q6_K [out, super-blocks, …]: four low bits, two high bits, c, d. Halves of a
    super-block are four runs of 32: the low bits of the first and the third share bytes, those of
    the second and the fourth; the high bits of all four do."""
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


def _unfit(kind: Kind) -> str:
    return f"{kind.name} cannot hold this model."


def _half(values: Tensor) -> Bytes:
    """[out, blocks] -> its float16 bytes [out, blocks, 2]."""
    return values.half().numpy().view(np.uint8).reshape(*values.shape, 2)


def _nibbles(q: Tensor) -> Bytes:
    """[out, blocks, 32] in 0 .. 15 -> [out, blocks, 16]: first half low, second half high."""
    low, high = q[..., :HALF], q[..., HALF:]
    return (low | (high << 4)).to(torch.uint8).numpy()


def _rows(*parts: Bytes) -> Bytes:
    """Parts [out, blocks, …] of the blocks, joined: [out, bytes]."""
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)


@dataclass(frozen=True)
class GGUFSource:
    """A parameter to write, in a file, in memory or to be read by a function. `heads`: whose rows
    change places; `shift` is added."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Path | Tensor | QuantizedWeight | Callable[[], Tensor | QuantizedWeight]
    heads: int = 0
    shift: float = 0.0

    def read(self) -> Tensor | QuantizedWeight:
        """The parameter, its rows in the order of GGUF."""
        place = self.place
        if isinstance(place, Path):
            with safe_open(place, "pt") as stored:
                place = stored.get_tensor(self.name)
        elif not isinstance(place, Tensor | QuantizedWeight):
            place = place()
        if isinstance(place, Tensor) and self.shift:
            return place.float() + self.shift
        if not self.heads:
            return place
        if isinstance(place, Tensor):
            return interleaved(place, self.heads)
        return place.with_rows(lambda rows: interleaved(rows, self.heads))


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of rotary heads: first of each half, second of each half, …"""
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
    """Write the model in `folder` to `path`. Raises ConfigError: model, tokenizer or weights have
    no counterpart in GGUF; ModelError: the folder is damaged.

    Args:
        type: of the linear layers; see `types.choose_type`.
        packed: the folder holds quantized layers, whose codes are carried over; what is not
            quantized is then stored as it is.
        title: the model's name in the file.
        embedding: of embedding and head, where they are not quantized.
    """
    sizes = architecture_of(read_config(folder))
    writer = GGUFWriter(path, sizes.name)
    _add_metadata(writer, folder, sizes)
    writer.add_name(title)
    writer.add_file_type(LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    if type not in types.FLOATS:
        writer.add_quantization_version(2)  # of GGML's blocks
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == sizes.name)
    names = get_tensor_name_map(architecture, sizes.blocks)
    layout = read_layout(folder) if packed else None
    sources = [(s, _kind(s, type, layout, embedding)) for s in _sources(folder, packed, sizes)]
    for source, kind in sources:
        size = prod(quant_shape_to_byte_shape(source.shape, kind))
        dtype = np.dtype(np.float32)  # of the numbers the shape counts, not of the file
        name = source.name if source.name in sizes.factors else _named(source.name, names)
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
            writer.write_tensor_data(rounded(source.name, value, kind))
        else:
            writer.write_tensor_data(carried(source.name, value, kind))
    writer.close()


def _add_metadata(writer: GGUFWriter, folder: Path, sizes: GGUFArchitecture) -> None:
    """Sizes and vocabulary."""
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
    begins = first == [special.special_token_ids.get("bos")]
    special.add_special_token = {"bos": begins, "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _sources(folder: Path, packed: bool, sizes: GGUFArchitecture) -> Iterator[GGUFSource]:
    """What is written, in the order of the files; a tied head is stored once."""
    sources = _packed_sources(folder) if packed else _plain_sources(folder)
    for source in _experts_together(sources, sizes.experts):
        module = source.name.rpartition(".")[0]
        if sizes.tied and module == "lm_head":
            continue
        heads = next((n for end, n in sizes.rows.items() if module.endswith(end)), 0)
        shift = sizes.norm_shift if module.endswith("norm") else 0.0
        yield replace(source, heads=heads, shift=shift)
    for name, values in sizes.factors.items():
        yield GGUFSource(name, (len(values),), torch.float32, torch.tensor(values))


def _experts_together(sources: Iterable[GGUFSource], count: int) -> Iterator[GGUFSource]:
    """The sources, but for all experts of a block one [experts, out, in] for each projection."""
    experts = dict[str, dict[int, GGUFSource]]()
    for source in sources:
        if one := ONE_EXPERT.fullmatch(source.name.removesuffix(".weight")):
            experts.setdefault(f"{one[1]}.{one[3]}", {})[int(one[2])] = source
        else:
            yield source
    for name, by_number in experts.items():
        alike = [by_number[number] for number in sorted(by_number)]
        if len(alike) != count or len({(each.shape, each.dtype) for each in alike}) > 1:
            raise ConfigError(
                "This model cannot be written as GGUF.",
                f"The {len(alike)} experts of {name} are not {count} that are alike.",
                "Choose a complete model, all of whose experts are quantized, or none.",
                "model",
            )
        stem, _, joint = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if joint == GATE_UP else (joint,)
        shape = count, alike[0].shape[0] // len(parts), alike[0].shape[1]
        for number, part in enumerate(parts):
            place = partial(_stack, alike, len(parts), number)
            yield GGUFSource(f"{stem}.{part}.weight", shape, alike[0].dtype, place)


def _stack(experts: Sequence[GGUFSource], parts: int, number: int) -> Tensor | QuantizedWeight:
    """One of so many parts of all experts, one after the other."""
    values = [each.read() for each in experts]
    if layers := [each for each in values if isinstance(each, QuantizedWeight)]:
        return joined([each.split(parts)[number] for each in layers])
    return torch.cat([each.chunk(parts)[number] for each in values if isinstance(each, Tensor)])


def _plain_sources(folder: Path) -> Iterator[GGUFSource]:
    family, headers = str(read_config(folder)["model_type"]), read_headers(folder)
    matrices = block_matrices(family, headers)
    experts = [x for x in matrices if together(x.name) != x.name]
    reader, inside = StoredLinears(folder, experts), {n for x in experts for n in x.stored.names}
    for x in experts:
        dtype = DTYPES[headers[x.stored.names[0]].dtype]
        place = partial(reader.read, x)
        yield GGUFSource(f"{x.name}.weight", (x.rows, x.columns), getattr(torch, dtype), place)
    for file in weight_files(folder):
        with safe_open(file, "pt") as stored:
            for name in sorted({*stored.keys()} - inside):
                tensor = stored.get_slice(name)
                yield GGUFSource(name, tuple(tensor.get_shape()), tensor[:0].dtype, file)


def _packed_sources(folder: Path) -> Iterator[GGUFSource]:
    layers, rest = read_layers(folder)
    for name, layer in layers.items():
        yield GGUFSource(f"{name}.weight", (*layer.codes.shape,), torch.uint8, layer)
    for name, tensor in rest.items():
        yield GGUFSource(name, (*tensor.shape,), tensor.dtype, tensor)


def _kind(
    source: GGUFSource, linears: str, layout: Layout | None, embedding: types.EmbeddingType
) -> Kind:
    """The type of one tensor: vectors are float32; codes get a type that holds them; rows that
    blocks do not divide are float16."""
    if len(source.shape) == 1:
        return Kind.F32
    inside, columns, place = IN_BLOCK.fullmatch(source.name), source.shape[-1], source.place
    if inside and not compressed(inside[2]):
        return Kind.F32
    if layout and source.dtype == torch.uint8:
        if inside and len(layout.linears) == 1:
            return Kind[linears]
        kind = types.carried_type(linears, layout.of(source.name.removesuffix(".weight")), columns)
        shared = isinstance(place, QuantizedWeight) and holds_shared_scales(place)
        return Kind["Q8_0" if kind == "Q6_K" and not shared else kind]
    if inside:
        return (
            EXACT.get(source.dtype, Kind.F32) if layout else Kind[types.fitting(linears, columns)]
        )
    stored = str(source.dtype).removeprefix("torch.")
    return Kind[
        types.fitting(types.embedding_type(embedding, linears, bool(layout), stored), columns)
    ]


def _named(name: str, names: TensorNameMap) -> str:
    known: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if known is None:
        raise ConfigError(
            "This model cannot be written as GGUF.",
            f"GGUF has no tensor for {name}.",
            field="model",
        )
    return known
