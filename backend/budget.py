"""Budgets for a mix of layer formats. Does not import torch.

80MB          file size: layers in their formats, all other tensors as in the source
3.25bits      bits per weight of the layers, scales included
50%           zeros in the layers
loss 2%       smallest file with a perplexity at most 2 % higher; also written 1.02x
6.5ms         time per token in the native decoder, as timed by the profile
"""

import re
from dataclasses import dataclass
from typing import Literal

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SYNTAX = (
    "Write a size (80 MB), bits per weight (3.25 bits), sparsity (50 %), a loss (loss 2 % or "
    "1.02 ×) or a time per token (6.5 ms)."
)
PREFIX = "budget:"  # marks an allocation that mixes formats

BudgetKind = Literal["size", "bits", "sparsity", "loss", "ms"]
RANGES: dict[BudgetKind, tuple[float, float]] = {  # plausible for any model and processor
    "size": (1e4, 1e14),
    "bits": (0.1, 32),
    "sparsity": (1e-4, 0.9999),
    "loss": (1e-4, 10),
    "ms": (1e-3, 1e6),
}


@dataclass(frozen=True)
class Budget:
    """An upper limit for a mix of formats. `value`: bytes, bits per weight, the fraction of zeros,
    the relative rise of perplexity, or milliseconds, depending on `kind`."""

    kind: BudgetKind
    value: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse one of the five forms. Raises ValueError with the syntax for anything else."""
        match = re.fullmatch(
            r"(?:(loss)\s+)?(\d{1,15}(?:\.\d{1,9})?)\s*(%|x|×|bits|ms|[kmg]i?b|b)",
            text.strip().lower(),
        )
        if not match or (match[1] and match[3] not in "%x×"):
            raise ValueError(f"{text[:40]!r} is not a budget. {SYNTAX}")
        number, unit = float(match[2]), match[3]
        kind: BudgetKind = "size"
        if unit in ("bits", "ms"):
            kind = "bits" if unit == "bits" else "ms"
        elif unit in "x×":
            kind, number = "loss", round(number - 1, 9)
        elif unit == "%":
            kind, number = "loss" if match[1] else "sparsity", number / 100
        else:
            number = round(number * UNITS[unit.removesuffix("b")])
        low, high = RANGES[kind]
        if not low <= number <= high:
            raise ValueError(f"{text[:40]!r} is out of range. {SYNTAX}")
        return cls(kind, number)

    def __str__(self) -> str:
        """Format the budget so that `parse` returns an equal one."""
        if self.kind == "size":
            return f"{_decimal(self.value / 1e6)}MB"
        if self.kind in ("bits", "ms"):
            return f"{_decimal(self.value)}{self.kind}"
        return f"{'loss ' if self.kind == 'loss' else ''}{_decimal(100 * self.value)}%"


def _decimal(number: float) -> str:
    """Format with up to nine decimals, as `parse` accepts, without trailing zeros."""
    return f"{number:.9f}".rstrip("0").removesuffix(".")


def allocation(text: str, *others: str) -> str:
    """Normalize an allocation: one of `others`, or "budget:" followed by a budget. Raises
    ValueError for anything else."""
    text = text.strip()
    if text in others:
        return text
    if text.startswith(PREFIX):
        return f"{PREFIX}{Budget.parse(text.removeprefix(PREFIX))}"
    raise ValueError(
        f"{text[:40]!r} is not an allocation. Write {', '.join(others)} or budget:50%."
    )


def budget_of(text: str) -> Budget | None:
    """Return the budget of an allocation that mixes formats, or None."""
    return Budget.parse(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None
