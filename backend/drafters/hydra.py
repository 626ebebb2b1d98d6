"""Hydra (Ankner et al., arXiv 2402.05109): heads that read the earlier draft tokens of the path.

Anchor i: the tokens up to x_{i+1} are known. With E the target model's input embedding and
y_1 .. y_{k-1} the draft tokens of a path:

    a_i = SA(F [h_i ; E x_{i+1}])                                            a cloned layer
    e_k = a_i + SiLU(M_k [a_i ; E x_{i+1} ; E y_1 ; .. ; E y_{k-1}] + c_k)    M, c start at zero
    logits_k = W norm(e_k)

In training, the text after an anchor replaces the draft tokens. The causal layer over all earlier
anchors and the training on the target model's distribution follow the paper's Hydra++. Ours: one
residual block per head, the cloned layer and its initialization (see `adapted`).
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
    """Sequential drafter with one residual block per head."""

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        super().build(target, dtype)
        d = target.width
        inputs = range(2, self.config.heads + 2)  # a_i, x_{i+1} and the earlier draft tokens
        self.heads = nn.ModuleList(nn.Linear(n * d, d, dtype=dtype) for n in inputs)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def head_slots(self, head: int, state: Tensor, tokens: Tensor) -> Tensor:
        """Return the vectors [n, d] of a head, counted from 0. `state`: [n, d]; `tokens`:
        embeddings [n, 1 + head, d]."""
        inputs = torch.cat([state, (tokens / self.token_scale).flatten(1)], -1)
        return self.normed(state + silu(self.heads[head](inputs)))

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, positions: Tensor
    ) -> Tensor:
        state = self.stages(hidden, embedded)[-1][rows, positions]
        ahead = torch.arange(self.config.heads, device=rows.device)
        tokens = embedded[
            rows[:, None], (positions[:, None] + ahead).clamp(max=hidden.shape[1] - 1)
        ]
        heads = range(self.config.heads)
        return torch.stack([self.head_slots(k, state, tokens[:, : k + 1]) for k in heads], 1)

    def next_slots(self, inner: InnerNodes, caches: list[DecodingCache]) -> Tensor:
        lineages = torch.tensor([inner.lineage(path) for path in inner.paths[-inner.new :]])
        state = inner.slots[:1].expand(len(lineages), -1)
        return self.head_slots(lineages.shape[1] - 1, state, inner.tokens[lineages])
