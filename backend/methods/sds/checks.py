"""What is refused before any work, and what is only warned of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ConfigError
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks


def all_linears(model: PreTrainedModel) -> list[LinearWeight]:
    """Every linear of every block, in order."""
    blocks = range(len(decoder_blocks(model)))
    return [linear for block in blocks for linear in block_linears(model, block).values()]


def refuse_text(calibration: Tensor) -> None:
    """Refuses text that nothing can be calibrated on.

    Raises:
        ConfigRefused: not token ids [segments, tokens], or too few.
    """
    if calibration.dim() != 2 or not len(calibration) or calibration.shape[1] < 2:
        raise ConfigError(
            f"The calibration text has shape {list(calibration.shape)}.",
            "At least one segment of two tokens is needed.",
            "Give token ids [segments, tokens].",
        )


def shortage(linears: Sequence[LinearWeight], tokens: int) -> list[str]:
    """A warning when fewer tokens than twice a layer's inputs are there to calibrate on."""
    widest = max(linears, key=lambda linear: linear.shape[1])
    if tokens >= 2 * widest.shape[1]:
        return []
    return [
        f"Only {tokens} calibration tokens: {widest.name} reads {widest.shape[1]} inputs and asks "
        "for twice as many. Expect worse weights; add segments or a longer context."
    ]
