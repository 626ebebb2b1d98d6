"""A budget for the formats of a model's layers. Does not import torch.

80MB          the file: layers in their formats, the rest at its own size
3.25bits      bits a weight of the layers, scales included
50%           zeros in the layers
loss 2%       perplexity at most 2 % higher, and then the fewest bytes
6.5ms         a token in the native decoder, as the profile has timed it
"""

import re
from dataclasses import dataclass
from typing import Literal

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SYNTAX = (
    "Write a size (80MB), bits a weight (3.25bits), sparsity (50%), a loss (loss 2%) or the time "
    "of a token (6.5ms)."
)
PREFIX = "budget:"  # of an allocation that mixes formats

BudgetKind = Literal["size", "bits", "sparsity", "loss", "ms"]
RANGES: dict[BudgetKind, tuple[float, float]] = {  # what a model, a layer or a processor can have
    "size": (1e4, 1e14),
    "bits": (0.1, 32),
    "sparsity": (1e-4, 0.9999),
    "loss": (1e-4, 10),
    "ms": (1e-3, 1e6),
}


@dataclass(frozen=True)
class Budget:
    """What a mix may take. `value`: bytes, bits a weight, the share of zeros, the rise of
    perplexity as a share, or milliseconds."""

    kind: BudgetKind
    value: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse one of the five forms. Raises ValueError: it is none; the message shows them."""
        found = re.fullmatch(
            r"(?:(loss)\s+)?(\d{1,15}(?:\.\d{1,9})?)\s*(%|bits|ms|[kmg]i?b|b)", text.strip().lower()
        )
        if not found or (found[1] and found[3] != "%"):
            raise ValueError(f"{text[:40]!r} is no budget. {SYNTAX}")
        number, unit = float(found[2]), found[3]
        kind: BudgetKind = "size"
        if unit in ("bits", "ms"):
            kind = "bits" if unit == "bits" else "ms"
        elif unit == "%":
            kind, number = "loss" if found[1] else "sparsity", number / 100
        else:
            number = round(number * UNITS[unit.removesuffix("b")])
        least, most = RANGES[kind]
        if not least <= number <= most:
            raise ValueError(f"{text[:40]!r} is out of range. {SYNTAX}")
        return cls(kind, number)

    def __str__(self) -> str:
        """The text that `parse` reads as the same budget."""
        if self.kind == "size":
            return f"{_decimal(self.value / 1e6)}MB"
        if self.kind in ("bits", "ms"):
            return f"{_decimal(self.value)}{self.kind}"
        return f"{'loss ' if self.kind == 'loss' else ''}{_decimal(100 * self.value)}%"


def _decimal(number: float) -> str:
    """A number with the nine decimals that are read, without zeros at the end."""
    return f"{number:.9f}".rstrip("0").removesuffix(".")


def allocation(text: str, *others: str) -> str:
    """An allocation as it is stored: one of `others`, or "budget:" and a budget. Raises ValueError:
    it is neither."""
    text = text.strip()
    if text in others:
        return text
    if text.startswith(PREFIX):
        return f"{PREFIX}{Budget.parse(text.removeprefix(PREFIX))}"
    raise ValueError(f"{text[:40]!r} is no allocation. Write {', '.join(others)} or budget:50%.")


def budget_of(text: str) -> Budget | None:
    """The budget of an allocation that gives each layer a format of its own; None of others."""
    return Budget.parse(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None
