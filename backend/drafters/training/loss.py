"""Training loss of a set of anchors, and its gradient, without materialising all logits.

For anchor i and head k the teacher is the target model's distribution p_{i+k}, the label x_{i+1+k}.
With the target t = p + w_label onehot(label), restricted to the draft vocabulary, and q the head's
distribution over it,

    L = 1/n  sum_i sum_k  discount^(k-1)  [ |t| log sum exp(l) - t.l ],      l = W z_{i,k}
    dL/dl = discount^(k-1) / n  ( |t| q - t ),      dL/dz = W^T dL/dl

A target model that scales or caps its logits (`families.logits`) has l = t(W z), and dL/dz =
W^T (t'(W z) dL/dl).

A head whose target is beyond the end of its sequence contributes 0 but counts in n. |t| is the sum
of t: tokens outside the draft vocabulary carry no loss. Anchors are processed in chunks; the
teacher's logits are computed from the cached hidden states, one row per position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.drafters.config import CHUNK
from backend.drafters.registry import Drafter

LENGTH_STEP, ROW_STEP = 16, 64  # of sequences and rows: kernels are compiled once per shape
DISCOUNT, LABEL_WEIGHT = 0.8, 0.1  # ours, tuned on a 135M-parameter model


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
        anchors: how many the step has, those of other processes included.
    """

    hidden: Tensor
    ids: Tensor
    denominator: Tensor
    rows: Tensor
    places: Tensor
    valid: Tensor
    anchors: int


def loss_and_gradient(drafter: Drafter, slots: Tensor, batch: AnchorBatch) -> tuple[float, Tensor]:
    """The share of n anchors in the loss of a step, and its gradient by their slots [n, K, d]."""
    total, heads = 0.0, torch.arange(drafter.config.heads, device=slots.device)
    weights = DISCOUNT**heads / batch.anchors * batch.valid
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
    hidden = batch.hidden.flatten(0, 1)[flat]
    logits = drafter.logits(hidden).float()
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
