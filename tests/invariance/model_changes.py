"""Changes of a LLaMA-like model's weights that leave its function as it is.

A method that reads only what the model computes gives the same masks, codes and losses before and
after. Factors are powers of two, so that no value is rounded. The model has to be in memory, in
float32.

    norms      the weight of a norm by a factor, the columns of what reads it by its inverse
    layers     up_proj and down_proj, v_proj and o_proj by a factor and its inverse
    channels   as `norms`, with a factor for every channel
    pairs      as `layers`, with a factor for every channel
    order      the hidden channels of the MLP, and the query heads of a group, in another order
    sixteen    every matrix and the embedding 16 times as large, norms a 16th of that, and their
               epsilon 256 times as large
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.models.blocks import block_linears, decoder_blocks

POWERS = 3  # factors are 2^-3 .. 2^3


@dataclass
class Changed:
    """A changed model. `rows`, `columns`: full name of a linear -> where each of its rows and
    columns was before."""

    model: PreTrainedModel
    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)

    def before(self, name: str, entries: Tensor) -> Tensor:
        """What belongs to the weights [out, in] of a linear, at the places they had before."""
        found = entries.clone()
        if name in self.rows:
            found[self.rows[name]] = found.clone()
        if name in self.columns:
            found[:, self.columns[name]] = found.clone()
        return found

    def differing(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
        """Share of entries, by full name, that are not the same in the model before (`first`) and
        after (`second`): the largest of all linears."""
        assert first.keys() == second.keys()
        pairs = ((W, self.before(name, second[name])) for name, W in first.items())
        return max((a != b).float().mean().item() for a, b in pairs)


@dataclass(frozen=True)
class _Block:
    """One decoder block of the model that is changed."""

    changed: Changed
    block: Any
    random: torch.Generator
    unit: int  # channels that stay neighbors

    @property
    def reads(self) -> Iterator[tuple[Any, list[Any]]]:
        """Each norm, and the layers that read it."""
        attention, mlp = self.block.self_attn, self.block.mlp
        yield self.block.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]
        yield self.block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]

    def factors(self, count: int) -> Tensor:
        """Random powers of two [count]."""
        return 2.0 ** torch.randint(-POWERS, POWERS + 1, (count,), generator=self.random)

    def scale_pairs(self, each: bool) -> None:
        attention, mlp = self.block.self_attn, self.block.mlp
        width, heads = attention.v_proj.out_features, attention.num_key_value_groups
        for first, second in ((mlp.up_proj, mlp.down_proj), (attention.v_proj, attention.o_proj)):
            count = first.out_features
            factors = self.factors(count) if each else self.factors(1).expand(count)
            first.weight *= factors[:, None]
            if first.bias is not None:
                first.bias *= factors
            if second is attention.o_proj:  # the heads of a group read the same values
                by_head = factors.view(width // attention.head_dim, 1, attention.head_dim)
                factors = by_head.expand(-1, heads, -1).reshape(-1)
            second.weight /= factors

    def scale_norms(self, each: bool) -> None:
        for norm, layers in self.reads:
            factors = self.factors(len(norm.weight) if each else 1)
            norm.weight *= factors
            for layer in layers:
                layer.weight /= factors

    def order(self) -> None:
        attention, mlp = self.block.self_attn, self.block.mlp
        hidden = mlp.up_proj.out_features
        units = torch.randperm(hidden // self.unit, generator=self.random)
        channels = (units[:, None] * self.unit + torch.arange(self.unit)).flatten()
        self._reorder({mlp.gate_proj: channels, mlp.up_proj: channels}, {mlp.down_proj: channels})
        heads = torch.arange(attention.q_proj.out_features).view(
            -1, attention.num_key_value_groups, attention.head_dim
        )
        turned = heads.flip(1).flatten()
        self._reorder({attention.q_proj: turned}, {attention.o_proj: turned})

    def _reorder(self, rows: dict[Any, Tensor], columns: dict[Any, Tensor]) -> None:
        names = {module: name for name, module in self.changed.model.named_modules()}
        for layer, order in rows.items():
            layer.weight.copy_(layer.weight[order])
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])
            self.changed.rows[names[layer]] = order
        for layer, order in columns.items():
            layer.weight.copy_(layer.weight[:, order])
            self.changed.columns[names[layer]] = order


def _sixteen_times(model: Any) -> None:
    """Hidden states, and the outputs of o_proj and down_proj, 16 times as large; norms divide."""
    tied = model.config.tie_word_embeddings
    model.model.embed_tokens.weight *= 16
    if not tied:
        model.lm_head.weight *= 16
    norms = [model.model.norm]
    for index, block in enumerate(decoder_blocks(model)):
        for linear in block_linears(model, index).values():
            linear.write(linear.read() * 16)
        for name in ("o_proj", "down_proj"):
            part = block.self_attn if name == "o_proj" else block.mlp
            bias = getattr(part, name).bias
            if bias is not None:
                bias *= 16
        norms += [block.input_layernorm, block.post_attention_layernorm]
    for norm in norms:
        norm.weight /= 16
        norm.variance_epsilon *= 256


_BLOCKWISE: dict[str, Callable[[_Block], None]] = {
    "norms": lambda block: block.scale_norms(each=False),
    "layers": lambda block: block.scale_pairs(each=False),
    "channels": lambda block: block.scale_norms(each=True),
    "pairs": lambda block: block.scale_pairs(each=True),
    "order": _Block.order,
}
CHANGES = (*_BLOCKWISE, "sixteen")


@torch.no_grad()
def change(model: PreTrainedModel, name: str, unit: int = 1, seed: int = 0) -> Changed:
    """Change `model` in place, as one of `CHANGES`; `unit`: hidden channels of the MLP that stay
    neighbors, such as those of a group."""
    changed, random = Changed(model), torch.Generator().manual_seed(seed)
    if name == "sixteen":
        _sixteen_times(model)
        return changed
    for block in decoder_blocks(model):
        _BLOCKWISE[name](_Block(changed, block, random, unit))
    return changed
