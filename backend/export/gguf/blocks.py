"""One matrix as the bytes of a GGUF type. See `types` for the formulas."""

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from numpy.typing import NDArray
from torch import Tensor

from backend.errors import ConfigError
from backend.export.gguf.types import BLOCK, SUPER_BLOCK
from backend.quantization.embedding import factors, quantize_embedding
from backend.quantization.grid import QuantizedWeight
from backend.quantization.plan import QuantSettings, embedding_search

Bytes = NDArray[np.uint8]
HALF, SIXTEEN = BLOCK // 2, 16
SIX_BITS = QuantSettings(6, BLOCK, "symmetric", embedding_search(6))


def rounded(name: str, weight: Tensor, kind: Kind) -> NDArray[np.generic]:
    """`weight` [out, in] or [n], rounded; `ConfigError` if one is too large for float16."""
    values = weight.float().contiguous().numpy()
    if kind == Kind.F32:
        return values
    if kind == Kind.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            why = f"{name} has the weight {abs(values).max():.4g}, and 65504 is the largest."
            raise ConfigError(_unfit(kind), why, "Choose BF16.", "type")
        return halves
    if kind == Kind.Q6_K:
        return carried(name, quantize_embedding(weight, SIX_BITS, torch.float16), kind)
    return quantize(values, kind)


def carried(name: str, layer: QuantizedWeight, kind: Kind) -> NDArray[np.generic]:
    """The codes of a layer: uint8 [out, bytes of a row]; `ConfigError` if they do not fit."""
    if kind == Kind.F32:
        return layer.dense().numpy()
    if layer.group_size % BLOCK:
        what, why = _unfit(kind), f"Rows of {name} are no multiple of {BLOCK}."
        raise ConfigError(what, why, "Choose F32.", "type")
    if kind == Kind.Q6_K:
        return _rows(*_super_blocks(layer))
    blocks = layer.group_size // BLOCK  # [out, groups] -> [out, blocks]
    scale, zero = (
        part.repeat_interleave(blocks, dim=1) for part in (layer.grid.scale, layer.grid.zero)
    )
    if not torch.equal(scale.half().float(), scale):
        why = f"A scale of {name} is no float16 number."
        raise ConfigError(_unfit(kind), why, "Choose F32, or store the scales in float16.", "type")
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
