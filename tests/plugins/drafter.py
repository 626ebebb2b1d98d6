"""A drafter architecture in one file: a linear map per head on the hidden state (no cache)."""

import torch
from torch import Tensor, nn

from backend.decoding.target_model import TargetModel
from backend.drafters.registry import ParallelDrafter, drafter
from backend.models.kv_cache import PreallocatedCache


@drafter("linear-heads")
class LinearHeads(ParallelDrafter):
    """z_k = M_k h, M_k starting as the identity."""

    def build(self, target: TargetModel, dtype: torch.dtype) -> None:
        heads = torch.eye(target.width, dtype=dtype).repeat(self.config.heads, 1, 1)
        self.maps = nn.Parameter(heads)

    def anchor_slots(
        self, hidden: Tensor, embedded: Tensor, rows: Tensor, positions: Tensor
    ) -> Tensor:
        return torch.einsum("nd,kde->nke", hidden[rows, positions].to(self.maps.dtype), self.maps)

    def draft_slots(
        self, hidden: Tensor, embedded: Tensor, caches: list[PreallocatedCache]
    ) -> Tensor:
        return torch.einsum("d,kde->ke", hidden[0, -1].to(self.maps.dtype), self.maps)

    def new_caches(self, capacity: int) -> list[PreallocatedCache]:
        return []
