"""Initialization of a drafter before training (ours).

The scales of its coordinates are root mean squares over some text. The first fusion is fitted by
ridge regression to what the cloned layer reads in the target model, one position ahead:

    F1 = argmin  mean_i |F [h_i ; E x_{i+1}] - r_{i+1}|^2  +  ridge |F|^2

with r the residual stream that enters the first cloned layer, all in standardised coordinates. Even
before training, SA1 and SA2 then see roughly what they saw in the target model, and head 1 predicts
roughly as its last layers would. Without the sampled token the regression target is r_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.decoding.target_model import TargetModel
from backend.models.blocks import decoder_blocks

FIT_TOKENS = 16_384  # 8,192 determine twice 576 inputs badly, even with the ridge
RIDGE = 0.3
UNSEEN = 10  # one row in so many is left out, to judge the fit by
MIN_SCALE = 1e-4  # relative to the mean: a channel that is always zero must not be divided by zero


@dataclass(frozen=True)
class CollectedStates:
    """States of the target model over some text, [N, d] float32, rows of all sequences; `stream`:
    inputs of the first cloned layer, or the hidden states where none is cloned."""

    hidden: Tensor
    embedded: Tensor
    stream: Tensor


def ridge(inputs: Tensor, outputs: Tensor, strength: float = RIDGE) -> tuple[Tensor, float]:
    """The map [out, in] from inputs [N, in] to outputs [N, out], and the share of the outputs' mean
    square it explains on the last rows, which it was not fitted to."""
    seen = len(inputs) - len(inputs) // UNSEEN
    x, y = inputs[:seen], outputs[:seen]
    gram = x.T @ x / len(x)
    gram.diagonal().add_(strength)
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    x, y = (inputs[seen:], outputs[seen:]) if seen < len(inputs) else (x, y)
    residual = (y - x @ weight.T).square().mean()
    return weight, 1 - (residual / y.square().mean()).item()


def channel_scale(values: Tensor) -> Tensor:
    """Root mean square of each column of [N, c]."""
    scale = values.square().mean(0).sqrt()
    return scale.clamp_(min=MIN_SCALE * scale.mean().item() or 1.0)


def collect_states(
    target: TargetModel, sequences: Sequence[Tensor], block: int | None
) -> CollectedStates:
    """Hidden states, embeddings and inputs of `block` over `sequences` (token ids [L] each). The
    first token of a sequence counts as successor of the last one before it; there are few."""
    streams: list[Tensor] = []
    module = decoder_blocks(target.model)[block] if block is not None else nn.Identity()

    def see(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        streams.append(states[0].float())

    hook = module.register_forward_pre_hook(see, with_kwargs=True)
    try:
        ids = [sequence[None].to(target.device) for sequence in sequences]
        hidden = torch.cat([target.hidden(each)[0].float() for each in ids])
    finally:
        hook.remove()
    embedded = torch.cat([target.embed(each)[0].float() for each in ids])
    return CollectedStates(hidden, embedded, torch.cat(streams) if streams else hidden)
