"""The target model: a frozen causal LM that verifies whole trees of draft tokens.

    h = hidden state after the last block (and its final norm),   logits = t(W h (+ b))

where t scales and caps the logits of some families (`families.logits`).

On a CPU, models the native decoder supports (`backend.decoding.native`) are decoded by it. For
others the model's own forward is called with an explicit mask and positions, so any decoder that
honors both works. Either is tested once, on a small tree, whose logits must equal those of the
model's own forward along each path. Where the native decoder fails, the model's own is used; a
model that fails as well is rejected, so wrong text is never generated.
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

KERNELS = ("sdpa", GROUPED, "eager")  # the others accept no custom mask
NATIVE_TOLERANCE = 0.2  # of the spread of the logits, between two ways to round to 16 bits
PROBE = Tree([(0,), (1,), (0, 0), (1, 0), (1, 1)])
PROBE_CONTEXT = 12
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the spread of the logits
COARSE_TOLERANCE = 0.5  # in 16 bits: relative to the error of ignoring the mask


Mask = Tensor | dict[str, Tensor] | None  # of all layers, or by their type


class TargetModel:
    """A model that verifies trees, with the native decoder where `native` and that supports it, or
    with a given one, which is not compared with it and goes on beyond the context; for PyTorch its
    packed weights are expanded. Raises ModelError: it cannot verify trees; says why.

    Attributes:
        width: d; `vocabulary`: V; `context`: maximum number of tokens; `limit`: why, in words.
        window: tokens that layers with a sliding window attend to; None where there are none.
        transform: of the logits after the head.
        decoder: what decodes, in words.
    """

    def __init__(self, model: PreTrainedModel, native: bool | NativeModel = True) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self._cache = cache_name(model)
        refuse_unfit(model)
        config = model.config.get_text_config()
        self.layers = config.num_hidden_layers
        stable = stable_context(config)
        self.context = min(config.max_position_embeddings, stable)
        self.limit = f"the context holds {self.context}"
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
        if native and (why := unsupported(model)):
            self.decoder = f"PyTorch; the native decoder does not run this model: {why}"
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
        held: Sequence[CacheBlock] = (),
    ) -> DecodingCache:
        """An empty cache for `capacity` tokens, including those of a tree; a native one may begin
        with the tokens of the blocks `held`, and counts those it adds in `blocks`."""
        if self.native:
            return self.native.new_cache(capacity, blocks, held)
        return PreallocatedCache(self.layers, capacity)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids [...]: [..., d]."""
        embedding: nn.Module = self.model.get_input_embeddings()
        return embedding(ids)

    def hidden(
        self,
        ids: Tensor,
        cache: PreallocatedCache | StackedCache | None = None,
        positions: Tensor | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Hidden states [b, n, d] of token ids [b, n]; without mask and positions: causal."""
        more: dict[str, Any] = {"attention_mask": mask, "position_ids": positions}
        output = self.model.base_model(
            input_ids=ids,
            use_cache=cache is not None,
            **{self._cache: cache},
            **{name: value for name, value in more.items() if value is not None},
        )
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., V]."""
        return self.transform(self.head(hidden))

    def windowed(self, mask: Tensor, far: Tensor) -> Mask:
        """A mask in which layers with a window do not see what is `far`: of all, or by type."""
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
        """A pass over one segment; see `run`."""
        return self.run([Segment(cache, tokens, tree, read_out)])[0]

    def run(self, segments: Sequence[Segment]) -> list[Read]:
        """Append segments to their caches: of each the hidden states [n, d], and the logits
        [read_out, V] of its last tokens. PyTorch has one pass for all that append a single token,
        and one for each of the others."""
        if self.native:
            return self.native.run(segments)
        single = [x for x in segments if len(x.ids) == 1 and x.cache.length]
        if len(single) < 2:
            return [self._read(segment) for segment in segments]
        # one token each
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
            places = length + torch.tensor(tree.depths, device=self.device)
            positions = places.clamp(max=self.context - 1)[None]  # those beyond are not kept
            seen = torch.zeros(1, 1, len(tree), length + len(tree), dtype=self.dtype)
            seen[..., length:].masked_fill_(~tree.ancestors, torch.finfo(self.dtype).min)
            mask = seen = seen.to(self.device)
            if self.window is not None and seen.shape[-1] > self.window:
                columns = torch.cat([torch.arange(length, device=self.device), places])
                mask = self.windowed(seen, places[:, None] - columns >= self.window)
        ids = torch.tensor([segment.ids], device=self.device)
        hidden = self.hidden(ids, cache, positions, mask)[0]
        return hidden, self.logits(hidden[len(hidden) - segment.read_out :])


def refuse_unfit(model: PreTrainedModel) -> None:
    """Raise `ModelError` for unsupported attention, positions, cache or head; runs nothing."""
    config, kernel = model.config.get_text_config(), model.config._attn_implementation
    if kernel not in KERNELS:
        raise _refused(
            model,
            f"Its attention ({kernel}) does not accept a tree mask.",
            "Load it with attn_implementation='sdpa'.",
        )
    sliding_window(model)
    positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if not positions or not hasattr(config, "max_position_embeddings"):
        raise _refused(model, "It accepts no position ids, and the nodes of a tree need their own.")
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise _refused(model, "It has no linear language-model head.")


@torch.inference_mode()
def check_tree(target: TargetModel) -> None:
    """Compare one small tree with the model's own forward along its paths.

    In 16 bits rounding may change logits by a tenth of their spread, so there the error is compared
    with that of the same tokens read as one chain, which is what ignoring the mask amounts to.
    Raises ModelError: the two differ, or the model's logits are not those of its head alone."""
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
            target.model, f"A small tree could not be run: {failure}."[:300]
        ) from failure
    if not error < limit:
        raise _refused(
            target.model,
            f"Its logits over a tree differ from those along a path by {error:.2g} of their "
            "spread: it ignores the given mask or positions.",
        )


def _distance(logits: Tensor, expected: Tensor) -> float:
    """Root mean square difference, relative to the spread of the expected logits."""
    expected = expected.float()
    return ((logits.float() - expected).square().mean().sqrt() / expected.std()).item()


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Hex sha256 over name, shape and bfloat16 values of every weight, in whatever precision."""
    digest = hashlib.sha256()
    for name, parameter in (*model.named_parameters(), *packed_weights(model).items()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        values = parameter.detach().to(torch.bfloat16).cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name -> dense weight of every layer on packed weights, which have no weight parameter."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, PackedLinear)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items()}


def _refused(model: PreTrainedModel, why: str, do: str = "Choose another model.") -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot verify trees of draft tokens.", why, do, field="model"
    )
