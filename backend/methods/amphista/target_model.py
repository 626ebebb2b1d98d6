"""The base: a frozen causal LM, opened so that whole trees can be verified.

    h = hidden state after the last block (and its final norm),   logits = W h (+ b)

`TargetModel` calls the model's own forward with explicit mask and positions, so any decoder
works that honours both. Whether it does is not believed but tried once, on a small tree: its logits
must equal those of decoding each path alone. What fails is refused; wrong text is never written.
"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from backend.errors import ModelError
from backend.methods.amphista.tree import Tree, chain
from backend.models.attention import NAME, use_grouped
from backend.models.kv_cache import PreallocatedCache, cache_name, window_of
from backend.quantization.packed_linear import PackedLinear

KERNELS = ("sdpa", NAME, "eager")  # the others take no mask of one's own
RESHAPED = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
LONG, FAR = "longrope", 10**9
PROBE = Tree([(0,), (1,), (0, 0), (1, 0), (1, 1)])
PROBE_CONTEXT = 12
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the spread of the logits
COARSE_TOLERANCE = 0.5  # in 16 bits: of the error of a model that would not follow the mask


class TargetModel:
    """A base model that verifies trees.

    Attributes:
        width: d; `vocabulary`: V; `context`: tokens it can read at most.

    Raises:
        ModelError: it cannot be decoded by trees; says why.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self._cache = cache_name(model)
        refuse_unfit(model)
        use_grouped(model, self.device)
        config = model.config.get_text_config()
        self.layers = config.num_hidden_layers
        self.context = min(config.max_position_embeddings, window_of(model) or FAR, even(config))
        self.head: nn.Linear = model.get_output_embeddings()
        self.vocabulary, self.width = self.head.weight.shape
        try:
            probe(self)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _refused(model, f"A small tree could not be run: {error}."[:300]) from error

    def new_cache(self, capacity: int) -> PreallocatedCache:
        """An empty cache for `capacity` tokens, those of a tree included."""
        return PreallocatedCache(self.layers, capacity)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids [...]: [..., d]."""
        embedding: nn.Module = self.model.get_input_embeddings()
        return embedding(ids)

    def hidden(
        self,
        ids: Tensor,
        cache: PreallocatedCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
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
        read_out: Tensor = self.head(hidden)
        return read_out

    def verifier(self, cache: PreallocatedCache) -> TreeVerifier:
        """What runs trees on top of `cache`."""
        return TreeVerifier(self, cache)


class TreeVerifier:
    """Runs trees on top of a cache; their masks are made once and shifted."""

    def __init__(self, target: TargetModel, cache: PreallocatedCache) -> None:
        self.target, self.cache = target, cache
        self._masks: dict[Tree, tuple[Tensor, Tensor]] = {}

    def __call__(self, tokens: list[int], tree: Tree) -> tuple[Tensor, Tensor]:
        """Hidden states [n, d] and logits [n, V] of `tokens`, one for each node of `tree`.

        The cache then ends with a row for every node.
        """
        length, target = self.cache.length, self.target
        ids = torch.tensor([tokens], device=target.device)
        mask, depths = self._mask_of(tree)
        positions = (length + depths).clamp_(max=target.context - 1)  # beyond is never kept
        seen = mask[..., mask.shape[-1] - len(tree) - length :] if len(tree) > 1 else None
        if seen is not None and target.device.type != "cpu":
            seen = seen.contiguous()  # its kernels want aligned rows
        hidden = target.hidden(ids, self.cache, positions[None], seen)[0]
        return hidden, target.logits(hidden)

    def _mask_of(self, tree: Tree) -> tuple[Tensor, Tensor]:
        """Zeros for a full cache, then the tree's own mask: [1, 1, n, capacity + n]; and depths.

        Its last length + n columns are the mask over `length` cached tokens.
        """
        if tree not in self._masks:
            n, capacity = len(tree), self.cache.rows[0].capacity
            mask = torch.zeros(1, 1, n, capacity + n, dtype=self.target.dtype)
            lowest = torch.finfo(mask.dtype).min
            mask[..., capacity:].masked_fill_(~tree.ancestors(), lowest)
            depths = torch.tensor(tree.depths, device=self.target.device)
            self._masks[tree] = mask.to(self.target.device), depths
        return self._masks[tree]


def even(config: PreTrainedConfig) -> int:
    """Positions up to which rotary frequencies do not depend on how far a pass reaches.

    Beyond its original context `longrope` turns every token of a pass by its second set of
    frequencies, so the guesses of a tree would change how the tokens before them are read.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in (rope, *rope.values()) if isinstance(each, dict)]
    limits = [k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == LONG]
    return min(limits, default=FAR)


def refuse_unfit(model: PreTrainedModel) -> None:
    """Refuses what can be seen without running the model.

    Raises:
        ModelError: its attention, positions, cache or logits are of another kind.
    """
    config, kernel = model.config.get_text_config(), model.config._attn_implementation
    if kernel not in KERNELS:
        do = "Load it with attn_implementation='sdpa'."
        raise _refused(model, f"Its attention ({kernel}) takes no mask of a tree.", do)
    window_of(model)
    positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if not positions or not hasattr(config, "max_position_embeddings"):
        raise _refused(model, "Positions cannot be told to it, and a tree has its own.")
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise _refused(model, "It has no linear language-model head.")
    for name, neutral in RESHAPED.items():
        if getattr(config, name, neutral) not in (neutral, None):
            raise _refused(model, f"It reshapes its logits after the head ({name}).")


@torch.inference_mode()
def probe(target: TargetModel) -> None:
    """Verifies one small tree and compares it with decoding its paths one by one.

    Rounding in 16 bits may change logits by a tenth of their spread, so there the error is compared
    with that of the same tokens read as one chain, which is what ignoring the mask comes to.

    Raises:
        ModelError: the two differ, or the model's logits are not those of its head alone.
    """
    random = torch.Generator().manual_seed(0)
    size = PROBE_CONTEXT + len(PROBE)
    drawn = torch.randint(target.vocabulary, (size,), generator=random).tolist()
    context, tokens = drawn[:PROBE_CONTEXT], drawn[PROBE_CONTEXT:]
    cache = target.new_cache(size)
    target.hidden(torch.tensor([context], device=target.device), cache)
    verify = target.verifier(cache)
    found = verify(tokens, PROBE)[1]
    cache.rewind(PROBE_CONTEXT)
    ignored = verify(tokens, chain(len(PROBE) - 1))[1]
    paths = [context + [tokens[n] for n in PROBE.lineage(node)] for node in range(len(PROBE))]
    ids = [torch.tensor([path], device=target.device) for path in paths]
    expected = torch.stack([target.model(input_ids=i, use_cache=False).logits[0, -1] for i in ids])
    error, limit = _distance(found, expected), TOLERANCE.get(target.dtype)
    if not error < (limit or COARSE_TOLERANCE * _distance(ignored, expected)):
        raise _refused(
            target.model,
            f"Its logits over a tree differ from those along a path by {error:.2g} of their "
            "spread: it does not follow a given mask and positions.",
        )


def _distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, over the spread of what is expected."""
    expected = expected.float()
    return ((found.float() - expected).square().mean().sqrt() / expected.std()).item()


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Hex sha256 over name, shape and bfloat16 values of every weight: the same in whichever
    precision the model was loaded."""
    digest = hashlib.sha256()
    for name, parameter in (*model.named_parameters(), *packed_weights(model).items()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        values = parameter.detach().to(torch.bfloat16).cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name -> dense weight of every layer inside that runs on packed ones; no parameter is it."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, PackedLinear)}
    return {f"{name}.weight": layer.dense() for name, layer in layers.items()}


def _refused(model: PreTrainedModel, why: str, do: str = "Choose another model.") -> ModelError:
    what = f"{type(model).__name__} cannot verify trees of guesses."
    return ModelError(what, why, do, field="model")
