"""Training loss of a set of anchors, and its gradient, without materializing all logits; and the
accuracy of the heads on held-out sequences.

For anchor i and head k the teacher is the target model's distribution p_{i+k}, the label x_{i+1+k}.
With the target t = p + w_label onehot(label), restricted to the draft vocabulary, and q the head's
distribution over it,

    L = 1/n  sum_i sum_k  discount^(k-1)  [ |t| log sum exp(l) - t.l ],      l = W z_{i,k}
    dL/dl = discount^(k-1) / n  ( |t| q - t ),      dL/dz = W^T dL/dl

A target model that scales or caps its logits (`families.logits`) has l = t(W z), and dL/dz = W^T
(t'(W z) dL/dl).

A head whose target is beyond the end of its sequence contributes 0 but counts in n. |t| is the sum
of t: tokens outside the draft vocabulary carry no loss. Anchors are processed in chunks; the
teacher's logits are computed from the cached hidden states, one row per position.

Accuracy. The true token of anchor i and head k is the teacher's most likely token for position
i+1+k. Held-out responses are greedy, so it is the token that greedy decoding will accept.

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
from backend.drafters.config import CHUNK, head_stage
from backend.drafters.registry import Drafter
from backend.drafters.training.hidden_state_cache import CachedSequence, CachedSequences
from backend.errors import ComputeError
from backend.metric_key import MetricKey
from backend.reporter import Reporter, stop_if_asked

LENGTH_STEP, ROW_STEP = 16, 64  # of sequences and rows: kernels are compiled once per shape
DISCOUNT, LABEL_WEIGHT = 0.8, 0.1  # ours, tuned on a 135M-parameter model
TOP = (1, 3, 5)
NODES = 16  # of the tree whose accepted length is reported during training


def rounded_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def padded(length: int, context: int) -> int:
    """Padded length of sequences: a multiple of `LENGTH_STEP` within the context of the model."""
    return max(length, min(rounded_up(length, LENGTH_STEP), context))


@dataclass(frozen=True)
class AnchorBatch:
    """A padded batch of B sequences, T tokens at most.

    Attributes:
        hidden [B, T, d]; ids [B, T]; denominator [B, T].
        rows, places: [n] sequence and position of each anchor.
        valid: [n, K] whether the target of the head is inside the sequence.
    """

    hidden: Tensor
    ids: Tensor
    denominator: Tensor
    rows: Tensor
    places: Tensor
    valid: Tensor


def loss_and_gradient(drafter: Drafter, slots: Tensor, batch: AnchorBatch) -> tuple[float, Tensor]:
    """The loss of a step over its n anchors, and its gradient by their slots [n, K, d]."""
    total, heads = 0.0, torch.arange(drafter.config.heads, device=slots.device)
    weights = DISCOUNT**heads / len(batch.rows) * batch.valid
    gradient = torch.empty_like(slots)
    for start in range(0, len(slots), CHUNK):
        chunk = slice(start, start + CHUNK)
        target = _targets(drafter, batch, chunk)
        scale = weights[chunk, :, None]  # [c, K, 1]
        logits = drafter.logits(slots[chunk]).float()
        mass, denominator = target.sum(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
        losses = mass * denominator - (target * logits).sum(-1, keepdim=True)
        total += (losses * scale).sum().item()
        error = (logits - denominator).exp_().mul_(mass).sub_(target).mul_(scale)
        error.mul_(drafter.transform.slope(logits))
        gradient[chunk] = error.to(drafter.read_out.dtype) @ drafter.read_out
    return total, gradient


def _targets(drafter: Drafter, batch: AnchorBatch, chunk: slice) -> Tensor:
    """t [c, K, v] float32 of a chunk of anchors."""
    heads = drafter.config.heads
    ahead = torch.arange(1, heads + 1, device=batch.ids.device)
    rows, length = batch.rows[chunk, None], batch.ids.shape[1]
    places = (batch.places[chunk, None] + ahead).clamp_(max=length - 1)  # [c, K] index of p
    flat, order = (rows * length + places).flatten().unique(return_inverse=True)
    spare = rounded_up(len(flat), ROW_STEP) - len(flat)
    flat = pad(flat, (0, spare))  # unused rows, so that shapes recur
    logits = drafter.logits(batch.hidden.flatten(0, 1)[flat]).float()
    teacher = (logits - batch.denominator.flatten()[flat, None]).exp_()
    target = teacher[order].unflatten(0, (-1, heads))
    labels = batch.ids[rows, (places + 1).clamp(max=length - 1)]
    slots, known = position_in(drafter.vocabulary, labels)
    return target.scatter_add_(-1, slots[..., None], LABEL_WEIGHT * known.float()[..., None])


def position_in(vocabulary: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each id in the ascending `vocabulary`, and whether it is in it."""
    ids = ids.long()
    places = torch.searchsorted(vocabulary, ids).clamp_(max=len(vocabulary) - 1)
    return places, vocabulary[places] == ids


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
