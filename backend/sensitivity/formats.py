"""Formats a layer may be stored in: pruned, quantized, both, or as it is. Does not import torch.

Bytes of a layer with N = out x in weights, of which a share k is kept:

    16-bit             2 N
    bits, groups       N bits / 8 + 2 N / group       a 16-bit scale for each group
    n:m                k N (values + indices)         ceil(log2 m) bits a kept value
    percentage         k N (values) + N / 8           one bit a weight marks what is kept
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.pruning.pattern import Pattern

DENSE_BITS, SCALE_BITS = 16, 16
WIDTHS = (2, 3, 4, 5, 6, 8)  # bits of a code that decoder and files hold
SYNTAX = re.compile(r"int(\d{1,2})(?:-g(\d{1,5}))?")


@dataclass(frozen=True)
class Format:
    """How a layer is stored.

    Attributes:
        bits: of a weight, or of its code.
        group: inputs per scale; 0: the whole row. Without meaning for 16 bits.
        pattern: None: nothing is pruned.
    """

    bits: int = DENSE_BITS
    group: int = 0
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str) -> Format:
        """Parse "dense", "50%", "2:4", "int4-g64" or "2:4+int4-g64".

        Raises:
            ValueError: it is none of them; the message says what is.
        """
        pruned, plus, coded = text.strip().rpartition("+")
        if plus and not pruned:
            raise ValueError(f"{text!r} begins with a plus.")
        if match := SYNTAX.fullmatch(coded):
            bits = int(match[1])
            if bits not in WIDTHS:
                raise ValueError(f"{bits} bits are not offered: {', '.join(map(str, WIDTHS))}.")
            return cls(bits, int(match[2] or 0), Pattern.parse(pruned) if pruned else None)
        if plus:
            raise ValueError(f"{coded!r} is not a width. Write int4-g64.")
        return cls() if coded == "dense" else cls(pattern=Pattern.parse(coded))

    def __str__(self) -> str:
        coded = f"int{self.bits}" + (f"-g{self.group}" if self.group else "")
        parts = [str(self.pattern)] if self.pattern else []
        return "+".join([*parts, coded] if self.quantized else parts) or "dense"

    @property
    def label(self) -> str:
        """In words: "2:4, 4 bits in groups of 64"."""
        groups = f" in groups of {self.group}" if self.group else ""
        words = [str(self.pattern)] if self.pattern else []
        return (
            ", ".join([*words, f"{self.bits} bits{groups}"] if self.quantized else words)
            or "16 bits"
        )

    @property
    def quantized(self) -> bool:
        return self.bits < DENSE_BITS

    @property
    def sparsity(self) -> float:
        """Share of the weights that are dropped."""
        return self.pattern.drop if self.pattern else 0.0

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` inputs can be stored so."""
        divides = not self.group or columns % self.group == 0
        return divides and (self.pattern is None or self.pattern.divides(columns))

    def bits_per_weight(self, columns: int) -> float:
        """Bits a weight of a row of `columns` inputs takes, with scales, indices and masks."""
        scales = SCALE_BITS / (self.group or columns) if self.quantized else 0.0
        if self.pattern is None:
            return self.bits + scales
        index = (self.pattern.group - 1).bit_length() if self.pattern.structured else 0
        mask = 0 if self.pattern.structured else 1
        return (1 - self.sparsity) * (self.bits + index) + mask + scales

    def nbytes(self, rows: int, columns: int) -> float:
        """Bytes of a layer [rows, columns]."""
        return rows * columns * self.bits_per_weight(columns) / 8
