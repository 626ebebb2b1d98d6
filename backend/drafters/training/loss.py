"""Training loss and its gradient, without materializing all logits, and accuracy of the heads.

For anchor i and head k the teacher is the target model's distribution p_{i+k}, the label x_{i+1+k}.
With the training target t = p + w_label onehot(label), restricted to the draft vocabulary, and q
the head's distribution over it,

    L = 1/n  sum_i sum_k  discount^(k-1)  [ |t| log sum exp(l) - t.l ],      l = W z_{i,k}
    dL/dl = discount^(k-1) / n  ( |t| q - t ),      dL/dz = W^T dL/dl

A target model that scales or caps its logits (`families.logits`) has l = t(W z), and dL/dz = W^T
(t'(W z) dL/dl).

A head whose target is beyond the end of its sequence contributes 0 but counts in n. |t| is the sum
of t, so tokens outside the draft vocabulary have no loss. Anchors are processed in chunks. The
teacher's logits are computed from the cached hidden states, one row per position.

Accuracy. The true token of anchor i and head k is the teacher's most likely token for position
i+1+k. Held-out answers are greedy, so this is the token that greedy decoding accepts.

    top-m of head k     share of anchors whose true token is among the head's m most likely
    chained of head k   top-1 over the anchors at which heads 1 to k - 1 are right
    accepted length     of a tree, replayed on the answers (`draft_tree.walked_lengths`)
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

LENGTH_STEP, ROW_STEP = 16, 64  # sizes are rounded up, because kernels are compiled per shape
DISCOUNT, LABEL_WEIGHT = 0.8, 0.1  # ours, tuned on a 135M-parameter model
TOP = (1, 3, 5)
NODES = 16  # size of the tree whose accepted length is reported during training


def rounded_up(number: int, step: int) -> int:
    """Return `number` rounded up to a multiple of `step`."""
    return -(-number // step) * step


def padded(length: int, context: int) -> int:
    """Return the padded length of sequences, a multiple of `LENGTH_STEP` within the context."""
    return max(length, min(rounded_up(length, LENGTH_STEP), context))


@dataclass(frozen=True)
class AnchorBatch:
    """A padded batch of B sequences of at most T tokens.

    Attributes:
        hidden: hidden states [B, T, d].
        ids: token ids [B, T].
        denominator: log of the softmax denominators [B, T].
        rows: sequence of each anchor, [n].
        positions: position of each anchor, [n].
        valid: [n, K], True if the head's target is inside the sequence.
    """

    hidden: Tensor
    ids: Tensor
    denominator: Tensor
    rows: Tensor
    positions: Tensor
    valid: Tensor


def loss_and_gradient(drafter: Drafter, slots: Tensor, batch: AnchorBatch) -> tuple[float, Tensor]:
    """Return the loss of a step over its n anchors, and its gradient in their slots [n, K, d]."""
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
    """Return the training targets t [c, K, v] float32 of a chunk of anchors."""
    heads = drafter.config.heads
    ahead = torch.arange(1, heads + 1, device=batch.ids.device)
    rows, length = batch.rows[chunk, None], batch.ids.shape[1]
    positions = (batch.positions[chunk, None] + ahead).clamp_(max=length - 1)  # [c, K] index of p
    flat, order = (rows * length + positions).flatten().unique(return_inverse=True)
    padding = rounded_up(len(flat), ROW_STEP) - len(flat)
    flat = pad(flat, (0, padding))  # unused rows, so that shapes recur
    logits = drafter.logits(batch.hidden.flatten(0, 1)[flat]).float()
    teacher = (logits - batch.denominator.flatten()[flat, None]).exp_()
    target = teacher[order].unflatten(0, (-1, heads))
    labels = batch.ids[rows, (positions + 1).clamp(max=length - 1)]
    indices, in_vocabulary = position_in(drafter.vocabulary, labels)
    weight = LABEL_WEIGHT * in_vocabulary.float()[..., None]
    return target.scatter_add_(-1, indices[..., None], weight)


def position_in(vocabulary: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of each id in the ascending `vocabulary`, and a mask of the ids in it."""
    ids = ids.long()
    indices = torch.searchsorted(vocabulary, ids).clamp_(max=len(vocabulary) - 1)
    return indices, vocabulary[indices] == ids


@dataclass(frozen=True)
class HeadAccuracy:
    """Ranks of the true tokens.

    Attributes:
        answers: ranks of each answer, [anchors, K] int; -1 if the token is not among the `RANKS`
            most likely, or not in the draft vocabulary.
    """

    answers: Sequence[Tensor]

    @property
    def ranks(self) -> Tensor:
        """Ranks of all answers together, [anchors, K]."""
        return torch.cat(list(self.answers))

    def top(self, m: int) -> list[float]:
        """Return the top-m accuracy of each head."""
        right = (self.ranks >= 0) & (self.ranks < m)
        return right.double().mean(0).tolist()

    def chained(self) -> list[float]:
        """Return the top-1 accuracy of each head over the anchors at which all earlier heads are
        right."""
        right = self.ranks == 0
        reached = torch.cat([torch.ones_like(right[:, :1]), right.cumprod(1)[:, :-1].bool()], 1)
        return ((right & reached).sum(0).double() / reached.sum(0).clamp(min=1)).tolist()

    def accepted(self, nodes: int = NODES) -> float:
        """Return the accepted length of the best tree of `nodes` nodes."""
        return walked_lengths(self.answers, [nodes])[0]

    def by_head(self) -> dict[str, list[float]]:
        """Map each metric family to the values of all heads."""
        return {f"top{m}": self.top(m) for m in TOP} | {"chained": self.chained()}

    def figures(self) -> dict[MetricKey, float]:
        """Return all metrics."""
        metrics = {
            MetricKey(family, head_stage(head)): value
            for family, values in self.by_head().items()
            for head, value in enumerate(values, 1)
        }
        return metrics | {MetricKey("accepted"): self.accepted()}


@torch.no_grad()
def measure_heads(
    drafter: Drafter, target: TargetModel, heldout: CachedSequences, reporter: Reporter
) -> HeadAccuracy:
    """Measure the ranks at every anchor of `heldout` at which all heads have a target.

    Raises:
        ComputeError: no sequence is long enough.
    """
    answers = []
    for index in range(len(heldout)):
        stop_if_asked(reporter)
        answers.append(sequence_ranks(drafter, target, heldout[index]))
    answers = [ranks for ranks in answers if len(ranks)]
    if not answers:
        raise ComputeError(
            "The accuracy of the heads cannot be measured.",
            f"No held-out answer is longer than the {drafter.config.heads} tokens they predict.",
            "Hold out more sequences, or choose prompts with longer answers.",
            "heldout",
        )
    return HeadAccuracy(answers)


def sequence_ranks(drafter: Drafter, target: TargetModel, sequence: CachedSequence) -> Tensor:
    """Return the ranks [anchors, K] of one sequence; no anchors if it is too short."""
    heads, device = drafter.config.heads, target.device
    ids = sequence.ids.long().to(device)
    first, last = max(sequence.start - 1, 0), len(ids) - 1 - heads
    if last <= first:
        return torch.empty(0, heads, dtype=torch.long)
    anchors = torch.arange(first, last, device=device)
    dtype = next(drafter.parameters()).dtype
    length = len(ids) - 1
    # attention is causal, so padding does not change the rows before it
    padding = padded(length, target.context) - length
    hidden = pad(sequence.hidden[:-1].to(device, dtype), (0, 0, 0, padding))[None]
    embedded = pad(target.embed(ids[1:]).to(dtype), (0, 0, 0, padding))[None]
    positions = pad(anchors, (0, rounded_up(len(anchors), ROW_STEP) - len(anchors)))
    with torch.autocast(device.type, torch.bfloat16, enabled=target.dtype == torch.bfloat16):
        slots = drafter.anchor_slots(hidden, embedded, torch.zeros_like(positions), positions)
    logits = drafter.logits(slots)[: len(anchors)]
    best = logits.topk(min(RANKS, len(drafter.vocabulary)), -1).indices
    ahead = anchors[:, None] + torch.arange(1, heads + 1, device=device)
    true_tokens, in_vocabulary = position_in(drafter.vocabulary, sequence.best.to(device)[ahead])
    hits = (best == true_tokens[..., None]) & in_vocabulary[..., None]
    return torch.where(hits.any(-1), hits.int().argmax(-1), -1).cpu()
