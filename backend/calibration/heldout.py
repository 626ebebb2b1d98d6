"""How much of the calibration text is held out, to choose by. Does not import torch."""

from __future__ import annotations


def heldout_count(segments: int, share: float) -> int:
    """How many of the calibration segments are held out: `share`, rounded, and never all."""
    return min(segments - 1, round(segments * share))
