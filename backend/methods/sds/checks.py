"""What is refused before any work, and what is only warned of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ConfigRefused, ModelRefused
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.pattern import Pattern
from backend.models.blocks import Linear, block_linears, decoder_blocks


def all_linears(model: PreTrainedModel) -> list[Linear]:
    """Every prunable linear, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]


def refuse_unfit(linears: Sequence[Linear], calibration: Tensor, config: SDSConfig) -> None:
    """Refuses what cannot be carried out.

    Raises:
        ConfigRefused: the pattern does not divide a layer, or there is nothing to calibrate on.
        ModelRefused: weights that are not finite.
    """
    if calibration.dim() != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ConfigRefused(
            f"The calibration text has shape {list(calibration.shape)}.",
            "At least one segment of two tokens is needed.",
            "Give token ids [segments, tokens].",
        )
    columns = {linear.name: linear.shape[1] for linear in linears}
    Pattern.parse(config.pattern).require_fit(columns)
    for linear in linears:
        if not torch.isfinite(linear.read()).all():
            raise ModelRefused(
                f"The weights of {linear.name} are not finite.",
                "The file is damaged or was saved by a training run that diverged.",
                "Choose another copy of the model.",
                field="model",
            )


def shortage(linears: Sequence[Linear], tokens: int) -> list[str]:
    """A warning when fewer tokens than twice a layer's inputs are there to calibrate on."""
    widest = max(linears, key=lambda linear: linear.shape[1])
    if tokens >= 2 * widest.shape[1]:
        return []
    return [
        f"Only {tokens} calibration tokens: {widest.name} reads {widest.shape[1]} inputs and asks "
        "for twice as many. Expect worse weights; add segments or a longer context."
    ]
