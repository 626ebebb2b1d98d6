"""Hydra (Ankner et al., arXiv 2402.05109): heads that read the draft tokens before theirs.

Anchor i: the tokens up to x_{i+1} are known. With E the target model's input embedding and
y_1 .. y_{k-1} the draft tokens of a path:

    a_i = SA(F [h_i ; E x_{i+1}])                                            a cloned layer
    e_k = a_i + SiLU(M_k [a_i ; E x_{i+1} ; E y_1 ; .. ; E y_{k-1}] + c_k)    M, c start at zero
    logits_k = W norm(e_k)

The text of an anchor stands for the draft tokens in training. A causal layer over all anchors
before, and learning from the target model's distribution, are those of the paper's Hydra++. Ours:
one residual block a head, the cloned layer and its start (see `adapted`).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from backend.decoding.native.cache import DecodingCache
from backend.decoding.target_model import TargetModel
from backend.drafters.adapted import InnerNodes, SequentialDrafter
from backend.drafters.registry import drafter


@drafter("hydra", adaptation_layers=1)
class HydraDrafter(SequentialDrafter):
    """A sequential drafter of one residual block a head."""

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        super().build(target, dtype)
        d = target.width
        known = range(2, self.config.heads + 2)  # a_i, x_{i+1} and the draft tokens before
        self.heads = nn.ModuleList(nn.Linear(n * d, d, dtype=dtype) for n in known)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def head_slots(self, head: int, state: Tensor, tokens: Tensor) -> Tensor:
        """The vectors [n, d] of a head, from 0: state [n, d], tokens [n, 1 + head, d]."""
        inputs = torch.cat([state, (tokens / self.token_scale).flatten(1)], -1)
        return self.normed(state + silu(self.heads[head](inputs)))

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, places: Tensor
    ) -> Tensor:
        state = self.stages(hidden, embedded)[-1][rows, places]
        ahead = torch.arange(self.config.heads, device=rows.device)
        tokens = embedded[rows[:, None], (places[:, None] + ahead).clamp(max=hidden.shape[1] - 1)]
        heads = range(self.config.heads)
        return torch.stack([self.head_slots(k, state, tokens[:, : k + 1]) for k in heads], 1)

    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        lineages = torch.tensor([inner.lineage(path) for path in inner.paths[-inner.new :]])
        state = inner.slots[:1].expand(len(lineages), -1)
        return self.head_slots(lineages.shape[1] - 1, state, inner.tokens[lineages])
