"""What estimates of several kinds rest on."""

from __future__ import annotations

GRAM_SHARE = 0.6  # q/k/v and gate/up read the same input and share one Gram
DECODE_COST = 4.0  # a token decoded alone costs as much as so many that are read at once
LOOKING = 700.0  # statistics of one weight, as floating-point operations: it is sorted and counted
ADAM = 16  # bytes of a trained number: itself, its gradient, two moments
