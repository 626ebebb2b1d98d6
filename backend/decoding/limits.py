"""Limits of sampling settings, and the head number of prompt lookup. Does not import torch."""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

LOOKUP_HEAD = -1  # head number of a token from prompt lookup; heads count from 1
MIN_TEMPERATURE, MIN_PENALTY = 0.01, 0.1  # logits divided by less would not be finite


def usable_temperature(temperature: float) -> float:
    """Return the temperature. Raise `ValueError` unless it is 0 or large enough to divide by."""
    if temperature and temperature < MIN_TEMPERATURE:
        raise ValueError(f"Enter 0, or at least {MIN_TEMPERATURE}")
    return temperature


Temperature: TypeAlias = Annotated[float, AfterValidator(usable_temperature)]
