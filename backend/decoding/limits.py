"""Limits of sampling, and the number that marks a token of prompt lookup. Does not import torch."""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

LOOKUP_HEAD = -1  # head number of a token from prompt lookup; heads count from 1
MIN_TEMPERATURE, MIN_PENALTY = 0.01, 0.1  # logits divided by less would not be finite


def usable_temperature(temperature: float) -> float:
    """A temperature that can be sampled with: 0, or large enough to divide by; else ValueError."""
    if temperature and temperature < MIN_TEMPERATURE:
        raise ValueError(f"Write 0, or at least {MIN_TEMPERATURE}")
    return temperature


Temperature: TypeAlias = Annotated[float, AfterValidator(usable_temperature)]
