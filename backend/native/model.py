"""A transformers model in the layout of `decoder.cpp`, and its cache.

Supported: blocks of RMSNorm, rotary positions, (grouped) attention and a SwiGLU MLP, as in LLaMA,
Mistral, Qwen2, Qwen3 and SmolLM, on a CPU, with bfloat16 weights or `PackedLinear` layers. The
residual stream, softmax and logits are float32, so the logits are closer to those of the float32
model than PyTorch's in bfloat16 are. Where the blocks are packed, the head is rounded to 8 bits and
the inputs of products to 8 bits (ours, as llama.cpp does).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.models.blocks import decoder_blocks
from backend.models.precision import resolve_dtype
from backend.native import structures as c
from backend.native.compiler import NATIVE, CompilerError, instructions, library
from backend.quantization.packed_linear import PackedLinear

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = tuple(f"{family.capitalize()}ForCausalLM" for family in FAMILIES)
LANES = 16  # outputs of a block
BFLOAT16, INT8, INT4 = 0, 1, 2
HEAD_GROUP = 32  # inputs with one scale, in a head of 8 bits
PREFILL = 64  # tokens in one pass over a prompt, or over the prompts of a batch
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")


def decoding_dtype(precision: str, device: torch.device, architecture: str) -> str:
    """`precision`, or for "auto" the fastest one to decode with: "bfloat16" or "float32".

    Where this decoder can be built it is faster in bfloat16 than PyTorch in float32, on processors
    without bfloat16 instructions, too: half as many bytes are read for a token.

    Args:
        architecture: of the model, such as LlamaForCausalLM.
    """
    if precision == "auto" and device.type == "cpu" and architecture in ARCHITECTURES:
        with suppress(CompilerError):
            library()
            return "bfloat16"
    return resolve_dtype(precision, device)


def unsupported(model: PreTrainedModel) -> str:
    """Why the decoder does not run this model; "" if it does."""
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        return f"it decodes {', '.join(FAMILIES)} models, not {config.model_type}"
    if model.device.type != "cpu":
        return "it runs on the CPU only"
    if model.dtype != torch.bfloat16:
        return f"it computes in bfloat16, not {str(model.dtype).removeprefix('torch.')}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in FIXED_ROTARY:
        return f"its rotary positions ({rope['rope_type']}) change with the length"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of each head only"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    head = _head_size(model)
    if head % LANES or config.intermediate_size % LANES or config.hidden_size % LANES:
        return f"its widths are not multiples of {LANES}"
    return ""


def _head_size(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class NativeCache:
    """Keys and values [layers, kv heads, capacity, head] of one sequence, in bfloat16.

    Attributes:
        capacity: maximum number of tokens, including a tree under verification.
    """

    def __init__(self, owner: NativeModel, capacity: int) -> None:
        self._owner, self.capacity = owner, capacity
        c_model = owner.structure
        shape = (c_model.layers, c_model.kv_heads, capacity, c_model.head)
        self._keys, self._values = torch.zeros(2, *shape, dtype=torch.bfloat16).unbind()
        self.structure = c.Cache(capacity, 0, self._keys.data_ptr(), self._values.data_ptr())

    @property
    def length(self) -> int:
        """Number of cached tokens."""
        return int(self.structure.length)

    def keep(self, start: int, chosen: Sequence[int]) -> None:
        """Of the rows from `start` on, keep those at `start + chosen` (ascending), in place."""
        rows = (ctypes.c_int32 * len(chosen))(*chosen)
        self._owner.call("keep", self.structure, start, rows, len(chosen))

    def rewind(self, length: int) -> None:
        """Drop all rows from `length` on."""
        self.structure.length = length

    def beginning(self, length: int, capacity: int) -> NativeCache:
        """A cache for `capacity` tokens that holds the first `length` rows of this one."""
        other = self._owner.new_cache(capacity)
        other._keys[:, :, :length] = self._keys[:, :, :length]
        other._values[:, :, :length] = self._values[:, :, :length]
        other.rewind(length)
        return other


class NativeModel:
    """A model whose passes `decoder.cpp` computes.

    Args:
        model: for which `unsupported` is empty; its embeddings are read in place.
        target: compiler flags that choose the instructions.

    Attributes:
        instructions: what the decoder was built for, such as AVX2.

    Raises:
        CompilerError: the decoder cannot be built here.
    """

    def __init__(self, model: PreTrainedModel, target: tuple[str, ...] = NATIVE) -> None:
        self._library = library(target)
        self.instructions = instructions(target)
        self._kept: list[object] = []  # what the structures point to
        self._tabulating = threading.Lock()
        inner: Any = model.base_model
        self._rotary: nn.Module = inner.rotary_emb
        config = model.config.get_text_config()
        blocks = decoder_blocks(model)
        layers = (c.Layer * len(blocks))(*map(self._layer, blocks))
        embedding: Tensor = inner.get_input_embeddings().weight.detach()
        self.vocabulary, self.width = embedding.shape
        self.structure = c.Model(
            len(blocks), self.width, config.num_attention_heads, config.num_key_value_heads,
            _head_size(model), config.intermediate_size, config.rms_norm_eps, self._own(embedding),
            layers, self._floats(inner.norm.weight),
            self._head(model),
        )  # fmt: skip
        self._kept.append(layers)
        self._rows = 0

    def call(self, function: str, *arguments: object) -> None:
        """Call a function of the library on this model."""
        passed = (ctypes.byref(x) if isinstance(x, ctypes.Structure) else x for x in arguments)
        getattr(self._library, function)(ctypes.byref(self.structure), *passed)

    def new_cache(self, capacity: int) -> NativeCache:
        """An empty cache for `capacity` tokens."""
        with self._tabulating:
            if capacity > self._rows:
                self._tabulate(max(capacity, 2 * self._rows))
        return NativeCache(self, capacity)

    def forward(
        self,
        ids: Tensor,
        cache: NativeCache,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        read_out: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Append the tokens `ids` [n] to the cache.

        Args:
            positions: [n]; None: those that follow the cached ones.
            visible: [n, n] bool, which tokens of the pass each sees; None: those before it.
            read_out: of how many of the last tokens logits are wanted.

        Returns:
            Hidden states [n, width] in bfloat16, and logits [read_out, vocabulary] in float32.
        """
        if positions is None:
            positions = torch.arange(cache.length, cache.length + len(ids))
        return self._pass(ids, [cache], positions, visible, read_out)

    def forward_batch(self, ids: Tensor, caches: Sequence[NativeCache]) -> tuple[Tensor, Tensor]:
        """Append the tokens `ids` [b, n] to the caches of b sequences, in one pass.

        Returns:
            Hidden states [b, n, width] in bfloat16, and logits [b, n, vocabulary] in float32.
        """
        b, n = ids.shape
        positions = torch.tensor([[cache.length] for cache in caches]) + torch.arange(n)
        found = self._pass(ids.flatten(), caches, positions.flatten(), None, b * n)
        hidden, logits = (x.unflatten(0, (b, n)) for x in found)
        return hidden, logits

    def _pass(
        self,
        ids: Tensor,
        caches: Sequence[NativeCache],
        positions: Tensor,
        visible: Tensor | None,
        read_out: int,
    ) -> tuple[Tensor, Tensor]:
        """As many of the tokens `ids` [n] for each of the caches; see `forward`."""
        n, outputs = len(ids), self.structure.read_out.outputs
        each = n // len(caches)
        for cache in caches:
            if cache.length + each > cache.capacity or int(positions.max()) >= self._rows:
                raise ValueError(f"{each} more tokens do not fit into a cache of {cache.capacity}")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary:
            raise ValueError(f"token ids lie outside 0 to {self.vocabulary - 1}")
        hidden = torch.empty(n, self.width)
        logits = torch.empty(read_out, outputs)
        held = [x.contiguous() for x in (ids.long(), positions.long())]
        seen = None if visible is None else visible.to(torch.uint8).contiguous()
        places = [x.data_ptr() for x in held] + [seen if seen is None else seen.data_ptr()]
        pointers = (ctypes.POINTER(c.Cache) * len(caches))(
            *(ctypes.pointer(cache.structure) for cache in caches)
        )
        self.call("forward", c.Pass(
            n, read_out, torch.get_num_threads(), len(caches), pointers,
            *places, hidden.data_ptr(), logits.data_ptr(),
        ))  # fmt: skip
        return hidden.bfloat16(), logits[:, : self.vocabulary]

    def read(self, ids: Tensor, cache: NativeCache) -> Tensor:
        """Append a prompt [n] to the cache; returns its hidden states [n, width]."""
        states = [self.forward(some, cache)[0] for some in ids.split(PREFILL) if len(some)]
        return torch.cat(states) if states else torch.empty(0, self.width, dtype=torch.bfloat16)

    # the layout -----------------------------------------------------------------------------------

    def _layer(self, block: Any) -> c.Layer:
        attention, mlp = block.self_attn, block.mlp
        norms = [
            None if norm is None else self._floats(norm.weight)
            for norm in (
                block.input_layernorm, block.post_attention_layernorm,
                getattr(attention, "q_norm", None), getattr(attention, "k_norm", None),
            )
        ]  # fmt: skip
        return c.Layer(
            self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            *map(self._matrix, (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            *norms,
        )

    def _head(self, model: PreTrainedModel) -> c.Matrix:
        """The head, in 8 bits where the blocks are packed: else it would be half of the bytes."""
        head: Any = model.get_output_embeddings()
        packed = any(isinstance(module, PackedLinear) for module in model.modules())
        return self._int8(head) if packed and not self.width % HEAD_GROUP else self._matrix(head)

    def _matrix(self, *linears: nn.Module) -> c.Matrix:
        """Linears [out, in] of the same input, one below the other."""
        packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
        alike = len(packed) == len(linears) and len({x.group for x in packed}) == 1
        return self._int4(packed) if alike else self._dense(linears)

    def _dense(self, linears: Sequence[nn.Module]) -> c.Matrix:
        weight = torch.cat([_weight(x) for x in linears]).detach().bfloat16().contiguous()
        outputs, inputs = weight.shape
        padded = -(-outputs // LANES) * LANES
        layout = torch.empty(padded * inputs, dtype=torch.bfloat16)
        self._library.pack_bf16(_at(weight), _at(layout), outputs, inputs)
        bias = self._bias(linears, padded)
        return c.Matrix(BFLOAT16, padded, inputs, inputs, self._own(layout), None, None, bias)

    def _int4(self, linears: list[PackedLinear]) -> c.Matrix:
        codes = torch.cat([_codes(linear) for linear in linears])
        outputs, inputs = codes.shape
        layout = torch.empty(outputs * inputs // 2, dtype=torch.uint8)
        self._library.pack_int4(_at(codes), _at(layout), outputs, inputs)
        scale, offset = torch.cat([linear.scale for linear in linears], 1).unbind(-1)
        scales, offsets = (self._own(_blocks(x)) for x in (scale, offset))
        return c.Matrix(
            INT4, outputs, inputs, linears[0].group, self._own(layout), scales,
            offsets if offset.any() else None, self._bias(linears, outputs),
        )  # fmt: skip

    def _int8(self, linear: nn.Linear) -> c.Matrix:
        """Rounded to nearest, symmetric, in groups of `HEAD_GROUP` inputs."""
        weight = linear.weight.detach().float()
        outputs, inputs = weight.shape
        padded = -(-outputs // LANES) * LANES
        weight = torch.cat([weight, weight.new_zeros(padded - outputs, inputs)])
        groups = weight.view(padded, -1, HEAD_GROUP)
        scale = (groups.abs().amax(-1) / 127).clamp_(min=1e-30).bfloat16()
        codes = (groups / scale.float().unsqueeze(-1)).round_().add_(128).clamp_(0, 255).byte()
        layout = torch.empty(padded * inputs, dtype=torch.uint8)
        self._library.pack_int8(_at(codes), _at(layout), padded, inputs)
        scales, bias = self._own(_blocks(scale.T)), self._bias([linear], padded)
        return c.Matrix(INT8, padded, inputs, HEAD_GROUP, self._own(layout), scales, None, bias)

    def _bias(self, linears: Sequence[nn.Module], padded: int) -> int | None:
        biases = [getattr(linear, "bias", None) for linear in linears]
        if all(bias is None for bias in biases):
            return None
        zeros = partial(torch.zeros, dtype=torch.float32)
        whole = torch.cat(
            [
                zeros(linear.out_features) if bias is None else bias.detach().float()
                for linear, bias in zip(linears, biases, strict=True)
            ]
        )
        return self._own(torch.cat([whole, zeros(padded - len(whole))]))

    def _tabulate(self, positions: int) -> None:
        """Cosines and sines [positions, head / 2] of the model's own rotary embedding."""
        places = torch.arange(positions)[None]
        with torch.no_grad():
            both = self._rotary(torch.empty(1, 1, dtype=torch.float32), places)
        half = self.structure.head // 2
        tables = [x[0, :, :half].float().contiguous() for x in both]
        # the tables before are kept: a pass of another thread may be reading them
        self.structure.cosines, self.structure.sines = map(self._own, tables)
        self._rows = positions

    def _floats(self, tensor: Tensor) -> int:
        return self._own(tensor.detach().float().contiguous())

    def _own(self, tensor: Tensor) -> int:
        """Its address; it is kept as long as this object."""
        self._kept.append(tensor)
        return tensor.data_ptr()


def _weight(linear: Any) -> Tensor:
    weight: Tensor = linear.dense() if isinstance(linear, PackedLinear) else linear.weight
    return weight


def _codes(linear: PackedLinear) -> Tensor:
    """The codes 0 to 15 [out, in]."""
    pairs = torch.stack([linear.pairs & 15, linear.pairs >> 4], -1)
    return pairs.view(linear.out_features, -1).contiguous()


def _blocks(table: Tensor) -> Tensor:
    """[groups, outputs] -> [outputs / 16, groups, 16]."""
    return table.T.reshape(-1, LANES, table.shape[0]).transpose(1, 2).contiguous()


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
