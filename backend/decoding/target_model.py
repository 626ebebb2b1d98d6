"""Target model: a frozen causal LM that verifies trees of draft tokens in one forward pass.

    h = hidden state after the last block (and its final norm),   logits = t(W h (+ b))

where t scales and caps the logits of some families (`families.logits`).

On a CPU, supported models run in the native decoder (`backend.decoding.native`). Other models run
their own forward with an explicit mask and positions. Either path is tested once on a small tree:
its logits must equal those of the model's own forward along each path. If the native decoder fails
the test, the model's own forward is used. If that fails too, the model is rejected, so wrong text
is never generated.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.compiler import CompilerError
from backend.decoding.draft_tree import Tree, chain
from backend.decoding.native.cache import CacheBlock, CacheBlocks, DecodingCache
from backend.decoding.native.families import LONG, head_size, stable_context, unsupported
from backend.decoding.native.model import NativeModel, Read, Segment
from backend.errors import ModelError
from backend.kernels.library import BLOCK
from backend.models.families.logits import LogitTransform
from backend.models.kv_cache import (
    GROUPED,
    PreallocatedCache,
    StackedCache,
    cache_name,
    sliding_window,
    use_grouped,
)
from backend.quantization.packed_linear import PackedLinear, unpack_model

ATTENTION_KERNELS = ("sdpa", GROUPED, "eager")  # other kernels accept no custom mask
PROBE = Tree([(0,), (1,), (0, 0), (1, 0), (1, 1)])
PROBE_CONTEXT = 12  # tokens
# maximum error relative to the standard deviation of the logits
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
NATIVE_TOLERANCE = 0.2  # two implementations round differently to 16 bits
COARSE_TOLERANCE = 0.5  # in 16 bits, relative to the error of ignoring the mask


Mask = Tensor | dict[str, Tensor] | None  # one mask for all layers, or one per layer type


class TargetModel:
    """A causal LM prepared to verify draft trees. Packed weights are expanded for PyTorch.

    Args:
        native: True uses the native decoder if it supports the model. A `NativeModel` is used
            without the test, and may read texts longer than the model's context.

    Attributes:
        width: hidden size d.
        vocabulary: number of tokens V.
        context: maximum number of tokens.
        limit: reason for `context`, in words.
        window: tokens visible to sliding-window layers; None if there are none.
        transform: transformation of the logits after the head.
        decoder: description of the decoder.

    Raises:
        ModelError: the model cannot verify trees.
    """

    def __init__(self, model: PreTrainedModel, native: bool | NativeModel = True) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self._cache = cache_name(model)
        refuse_unsupported_model(model)
        config = model.config.get_text_config()
        self.layers = config.num_hidden_layers
        stable = stable_context(config)
        self.context = min(config.max_position_embeddings, stable)
        self.limit = f"the model's context is {self.context}"
        if stable == self.context:
            self.limit = f"rotary frequencies change after {stable} ({LONG})"
        self.window = sliding_window(model)
        self.transform = LogitTransform.of(config)
        self.head: nn.Linear = model.get_output_embeddings()
        self.vocabulary, self.width = self.head.weight.shape
        self.native: NativeModel | None = None
        self.decoder = "PyTorch"
        if isinstance(native, NativeModel):
            self.native, self.decoder = native, f"native ({native.instructions})"
            self.context = stable
            return
        use_grouped(model, self.device)
        if native and (reason := unsupported(model)):
            self.decoder = f"PyTorch; the native decoder does not support this model: {reason}"
        elif native:
            try:
                self.native = NativeModel(model)
                check_tree(self)
                self.decoder = f"native ({self.native.instructions})"
            except (CompilerError, ModelError) as error:
                self.native, self.decoder = None, f"PyTorch; {error}"
        if self.native is None:
            unpack_model(model)
            check_tree(self)

    @property
    def block_size(self) -> int:
        """Bytes of keys and values of `BLOCK` tokens."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return 2 * self.layers * heads * head_size(config) * BLOCK * self.dtype.itemsize

    def new_cache(
        self,
        capacity: int,
        blocks: CacheBlocks | None = None,
        shared: Sequence[CacheBlock] = (),
    ) -> DecodingCache:
        """Create a cache for `capacity` tokens, including the nodes of a tree. A native cache may
        start with the `shared` blocks of another sequence, and allocates from `blocks`."""
        if self.native:
            return self.native.new_cache(capacity, blocks, shared)
        return PreallocatedCache(self.layers, capacity)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the input embeddings [..., d] of token ids [...]."""
        embedding: nn.Module = self.model.get_input_embeddings()
        return embedding(ids)

    def hidden(
        self,
        ids: Tensor,
        cache: PreallocatedCache | StackedCache | None = None,
        positions: Tensor | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Return the hidden states [b, n, d] of token ids [b, n]. Attention is causal without mask
        and positions."""
        optional: dict[str, Any] = {"attention_mask": mask, "position_ids": positions}
        output = self.model.base_model(
            input_ids=ids,
            use_cache=cache is not None,
            **{self._cache: cache},
            **{name: value for name, value in optional.items() if value is not None},
        )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., d]."""
        return self.transform(self.head(hidden))

    def windowed(self, mask: Tensor, far: Tensor) -> Mask:
        """Return a mask that hides `far` positions from sliding-window layers. One per layer type
        if the model mixes them."""
        near = mask.masked_fill(far, torch.finfo(mask.dtype).min)
        types = getattr(self.model.config.get_text_config(), "layer_types", None) or ()
        mixed = len(set(types)) > 1
        return {"full_attention": mask, "sliding_attention": near} if mixed else near

    def read(
        self,
        tokens: Sequence[int],
        cache: DecodingCache,
        tree: Tree | None = None,
        read_out: int = 1,
    ) -> Read:
        """Run a pass over one segment; see `run`."""
        return self.run([Segment(cache, tokens, tree, read_out)])[0]

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        """Append segments to their caches. Return, for each, the hidden states [n, d] and the
        logits [read_out, V] of its last tokens. PyTorch runs one pass for all segments of a single
        token, and one pass for each other segment."""
        if self.native:
            return self.native.run(segments)
        single = [x for x in segments if len(x.ids) == 1 and x.cache.length]
        if len(single) < 2:
            return [self._read(segment) for segment in segments]
        # stack the caches of all segments of one token
        caches = [x.cache for x in single if isinstance(x.cache, PreallocatedCache)]
        lengths = torch.tensor([cache.length for cache in caches], device=self.device)
        stack = StackedCache.of(caches, lengths)
        columns = torch.arange(int(lengths.max()) + 1, device=self.device)
        distance = (lengths[:, None] - columns)[:, None, None]
        mask = torch.zeros(distance.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(distance < 0, torch.finfo(mask.dtype).min)
        visible = self.windowed(mask, distance >= self.window) if self.window else mask
        ids = torch.tensor([segment.ids for segment in single], device=self.device)
        hidden = self.hidden(ids, stack, lengths[:, None], visible)
        for cache in caches:
            cache.rewind(cache.length + 1)
        logits = self.logits(hidden[:, 0])
        stacked = dict(
            zip(
                map(id, single),
                [(hidden[n], logits[n : n + x.read_out]) for n, x in enumerate(single)],
                strict=True,
            )
        )
        return [stacked.get(id(segment)) or self._read(segment) for segment in segments]

    def _read(self, segment: Segment) -> Read:
        cache, tree, positions = segment.cache, segment.tree, None
        mask: Mask = None
        assert isinstance(cache, PreallocatedCache)
        if tree:
            length = cache.length
            node_positions = length + torch.tensor(tree.depths, device=self.device)
            # nodes beyond the context are never committed
            positions = node_positions.clamp(max=self.context - 1)[None]
            visible = torch.zeros(1, 1, len(tree), length + len(tree), dtype=self.dtype)
            visible[..., length:].masked_fill_(~tree.ancestors, torch.finfo(self.dtype).min)
            mask = visible = visible.to(self.device)
            if self.window is not None and visible.shape[-1] > self.window:
                columns = torch.cat([torch.arange(length, device=self.device), node_positions])
                far = node_positions[:, None] - columns >= self.window
                mask = self.windowed(visible, far)
        ids = torch.tensor([segment.ids], device=self.device)
        hidden = self.hidden(ids, cache, positions, mask)[0]
        return hidden, self.logits(hidden[len(hidden) - segment.read_out :])


def refuse_unsupported_model(model: PreTrainedModel) -> None:
    """Raise `ModelError` for unsupported attention, positions, cache or head. Does not run the
    model."""
    config, kernel = model.config.get_text_config(), model.config._attn_implementation
    if kernel not in ATTENTION_KERNELS:
        raise _refused(
            model,
            f"Its attention ({kernel}) does not accept a tree mask.",
            "Load it with attn_implementation='sdpa'.",
        )
    sliding_window(model)
    positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if not positions or not hasattr(config, "max_position_embeddings"):
        raise _refused(model, "It accepts no position ids, which the nodes of a tree need.")
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise _refused(model, "It has no linear language-model head.")


@torch.inference_mode()
def check_tree(target: TargetModel) -> None:
    """Compare the logits of one small tree with the model's own forward along its paths.

    In 16 bits, rounding may change logits by a tenth of their spread. The error is then compared
    with that of the same tokens read as one chain, which equals ignoring the mask.

    Raises:
        ModelError: the two differ, or the model's logits do not come from its head alone.
    """
    random = torch.Generator().manual_seed(0)
    size = PROBE_CONTEXT + len(PROBE)
    drawn = torch.randint(target.vocabulary, (size,), generator=random).tolist()
    context, tokens = drawn[:PROBE_CONTEXT], drawn[PROBE_CONTEXT:]
    paths = [context + [tokens[n] for n in PROBE.lineage(node)] for node in range(len(PROBE))]
    ids = [torch.tensor([path], device=target.device) for path in paths]
    try:
        cache = target.new_cache(size)
        target.read(context, cache)
        _, logits = target.read(tokens, cache, PROBE, len(PROBE))
        cache.rewind(PROBE_CONTEXT)
        _, ignored = target.read(tokens, cache, chain(len(PROBE) - 1), len(PROBE))
        rows = [target.model(input_ids=i, use_cache=False).logits[0, -1] for i in ids]
        expected = torch.stack(rows)
        limit = TOLERANCE.get(target.dtype) or COARSE_TOLERANCE * _distance(ignored, expected)
        limit = min(limit, NATIVE_TOLERANCE) if target.native else limit
        error = _distance(logits, expected)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise _refused(
            target.model, f"The test with a small tree failed: {failure}."[:300]
        ) from failure
    if not error < limit:
        raise _refused(
            target.model,
            f"Its logits over a tree differ from those along a path by {error:.2g} of their "
            "spread. It ignores the given mask or positions.",
        )


def _distance(logits: Tensor, expected: Tensor) -> float:
    """Return the root mean square difference relative to the spread of the expected logits."""
    expected = expected.float()
    return ((logits.float() - expected).square().mean().sqrt() / expected.std()).item()


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Return the hex sha256 of name, shape and bfloat16 values of every weight. Independent of the
    stored precision."""
    digest = hashlib.sha256()
    for name, parameter in (*model.named_parameters(), *packed_weights(model).items()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        values = parameter.detach().to(torch.bfloat16).cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed_weights(module: nn.Module) -> dict[str, Tensor]:
    """Map names to the dense weights of all layers with packed weights, which have no weight
    parameter."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, PackedLinear)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items()}


def _refused(model: PreTrainedModel, why: str, do: str = "Choose another model.") -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot verify trees of draft tokens.", why, do, field="model"
    )
