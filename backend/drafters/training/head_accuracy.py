"""Accuracy of the heads on held-out sequences.

The true token of anchor i and head k is the teacher's most likely token for position i+1+k.
Held-out responses are greedy, so it is the token that greedy decoding will accept.

    top-m of head k     share of anchors whose true token is among the m best of the head
    chained of head k   top-1 over the anchors at which heads 1 to k - 1 are right
    accepted length     of a tree, walked over the responses (`tree.walked_lengths`)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.decoding.draft_tree import RANKS, walked_lengths
from backend.decoding.target_model import TargetModel
from backend.drafters.config import head_stage
from backend.drafters.data.hidden_state_cache import CachedSequence, CachedSequences
from backend.drafters.registry import Drafter
from backend.drafters.training.loss import ROW_STEP, padded, position_in, rounded_up
from backend.errors import ComputeError
from backend.metric_key import MetricKey
from backend.reporter import Reporter, stop_if_asked

TOP = (1, 3, 5)
NODES = 16  # of the tree whose accepted length is reported during training


@dataclass(frozen=True)
class HeadAccuracy:
    """Ranks of the true tokens: `answers` holds for each response [anchors, K] int; -1: not among
    the `RANKS` best, or not in the draft vocabulary."""

    answers: Sequence[Tensor]

    @property
    def ranks(self) -> Tensor:
        """[anchors, K] of all responses together."""
        return torch.cat(list(self.answers))

    def top(self, m: int) -> list[float]:
        right = (self.ranks >= 0) & (self.ranks < m)
        return right.double().mean(0).tolist()

    def chained(self) -> list[float]:
        """Top-1 accuracy of each head where all heads before it were right."""
        right = self.ranks == 0
        before = torch.cat([torch.ones_like(right[:, :1]), right.cumprod(1)[:, :-1].bool()], 1)
        return ((right & before).sum(0).double() / before.sum(0).clamp(min=1)).tolist()

    def accepted(self, nodes: int = NODES) -> float:
        return walked_lengths(self.answers, [nodes])[0]

    def by_head(self) -> dict[str, list[float]]:
        """Family of the metric -> value of each head."""
        return {f"top{m}": self.top(m) for m in TOP} | {"chained": self.chained()}

    def figures(self) -> dict[MetricKey, float]:
        found = {
            MetricKey(family, head_stage(head)): value
            for family, values in self.by_head().items()
            for head, value in enumerate(values, 1)
        }
        return found | {MetricKey("accepted"): self.accepted()}


@torch.no_grad()
def measure_heads(
    drafter: Drafter, target: TargetModel, heldout: CachedSequences, reporter: Reporter
) -> HeadAccuracy:
    """The ranks at every anchor of `heldout` at which all heads have a target, or ComputeError."""
    answers = []
    for index in range(len(heldout)):
        stop_if_asked(reporter)
        answers.append(sequence_ranks(drafter, target, heldout[index]))
    answers = [ranks for ranks in answers if len(ranks)]
    if not answers:
        raise ComputeError(
            "The accuracy of the heads cannot be measured.",
            f"No held-out response is longer than the {drafter.config.heads} tokens they predict.",
            "Hold out more sequences, or choose prompts with longer responses.",
            "heldout",
        )
    return HeadAccuracy(answers)


def sequence_ranks(drafter: Drafter, target: TargetModel, sample: CachedSequence) -> Tensor:
    """Ranks [anchors, K] of one sequence; no anchors if it is too short."""
    heads, device = drafter.config.heads, target.device
    ids = sample.ids.long().to(device)
    first, last = max(sample.start - 1, 0), len(ids) - 1 - heads
    if last <= first:
        return torch.empty(0, heads, dtype=torch.long)
    anchors = torch.arange(first, last, device=device)
    parameters = next(drafter.parameters()).dtype
    read = len(ids) - 1
    spare = padded(read, target.context) - read  # causal: padding changes nothing before it
    hidden = pad(sample.hidden[:-1].to(device, parameters), (0, 0, 0, spare))[None]
    embedded = pad(target.embed(ids[1:]).to(parameters), (0, 0, 0, spare))[None]
    asked = pad(anchors, (0, rounded_up(len(anchors), ROW_STEP) - len(anchors)))
    with torch.autocast(device.type, torch.bfloat16, enabled=target.dtype == torch.bfloat16):
        slots = drafter.anchor_slots(hidden, embedded, torch.zeros_like(asked), asked)
    logits = drafter.logits(slots)[: len(anchors)]
    best = logits.topk(min(RANKS, len(drafter.vocabulary)), -1).indices
    ahead = anchors[:, None] + torch.arange(1, heads + 1, device=device)
    wanted, known = position_in(drafter.vocabulary, sample.best.to(device)[ahead])
    hits = (best == wanted[..., None]) & known[..., None]
    return torch.where(hits.any(-1), hits.int().argmax(-1), -1).cpu()
