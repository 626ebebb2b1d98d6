"""What a drafter knows before its first step (ours).

The scales of its coordinates are root mean squares over some text. The first fusion is fitted by
ridge regression to what the cloned layer reads in the base, one position on:

    F1 = argmin  mean_i |F [h_i ; E x_{i+1}] - r_{i+1}|^2  +  ridge |F|^2

with r the residual stream that enters the first cloned layer, all in standardised coordinates. So
before any training SA1 and SA2 see about what they saw in the base, and head 1 guesses about as the
base would if it could run its last layers alone. Without the sampled token the target is r_i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backend.methods.amphista.config import DrafterConfig
from backend.methods.amphista.drafter.drafter import Drafter
from backend.methods.amphista.target_model import TargetModel
from backend.models.blocks import decoder_blocks

FITTED = 8192  # tokens that are enough for the fit
RIDGE = 0.01
SMALLEST = 1e-4  # a channel that is always zero must not be divided by zero


@torch.no_grad()
def prepare(
    drafter: Drafter, target: TargetModel, sequences: Sequence[Tensor], fitted: bool
) -> float:
    """Sets the scales and the fusions of an untrained drafter.

    Args:
        sequences: token ids [L] each; `FITTED` tokens in all are enough.
        fitted: whether to fit the first fusion, or to pass the hidden state on.

    Returns:
        Share of the target's mean square that the fit explains; 0 where nothing was fitted.
    """
    depth = drafter.config.adaptation_layers
    block = target.layers - depth if depth else None
    hidden, embedded, stream = _looked(target, sequences, block)
    drafter.hidden_scale.copy_(_scale(hidden))
    drafter.token_scale.fill_(_scale(embedded.reshape(-1, 1)).item())
    if not depth:
        return 0.0
    drafter.stream_scale.copy_(_scale(stream))
    fusions = list(drafter.fusions.parameters())
    for fusion in fusions:
        fusion.copy_(torch.eye(*fusion.shape))
    if not fitted:
        return 0.0
    inputs, outputs = _pairs(drafter, hidden, embedded, stream)
    weight, explained = ridge(inputs, outputs)
    fusions[0].copy_(weight)
    return explained


def _pairs(
    drafter: Drafter, hidden: Tensor, embedded: Tensor, stream: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the fit, rows of anchors."""
    inputs, outputs = hidden / drafter.hidden_scale, stream / drafter.stream_scale
    config: DrafterConfig = drafter.config
    if not config.sampled_token:
        return inputs, outputs
    tokens = embedded / drafter.token_scale
    return torch.cat([inputs[:-1], tokens[1:]], -1), outputs[1:]


def ridge(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """The map [out, in] from inputs [N, in] to outputs [N, out], and which share of the outputs'
    mean square it explains."""
    gram = inputs.T @ inputs / len(inputs)
    gram.diagonal().add_(RIDGE)
    weight = torch.linalg.solve(gram, inputs.T @ outputs / len(inputs)).T
    rest = (outputs - inputs @ weight.T).square().mean()
    return weight, 1 - (rest / outputs.square().mean()).item()


def _scale(values: Tensor) -> Tensor:
    """Root mean square of each column of [N, c]."""
    return values.square().mean(0).sqrt().clamp_(min=SMALLEST)


def _looked(
    target: TargetModel, sequences: Sequence[Tensor], block: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, embeddings and inputs of a block, [N, d] float32, rows of all sequences.

    Neighbours in different sequences count as followers too; they are few.
    """
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
    return hidden, embedded, torch.cat(streams) if streams else hidden
