"""Formats a layer may be stored in: pruned, quantized, both, or as it is. Does not import torch.

Bytes of a layer with N = out x in weights, of which a share k is kept:

    16-bit             2 N
    bits, groups       N bits / 8 + 2 N / group       a 16-bit scale for each group
    n:m                k N (values + indices)         ceil(log2 m) bits a kept value
    percentage         k N (values) + N / 8           one bit a weight marks what is kept
"""

from dataclasses import dataclass

from backend.errors import ConfigError
from backend.pruning.pattern import Pattern
from backend.quantization.config import Width

DENSE_BITS, SCALE_BITS = 16, 16


@dataclass(frozen=True)
class Format:
    """How a layer is stored: at a width or in 16 bits (None), pruned by a pattern or not (None)."""

    width: Width | None = None
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str) -> "Format":
        """Parse "dense", "50%", "2:4", "int4-g64" or "2:4+int4-g64". Raises ValueError: it is none
        of them; the message says what is."""
        pruned, plus, width = text.strip().rpartition("+")
        if plus:
            return cls(Width.parse(width), Pattern.parse(pruned))
        if width.startswith("int"):
            return cls(Width.parse(width))
        return cls() if width == "dense" else cls(pattern=Pattern.parse(width))

    def __str__(self) -> str:
        return "+".join(str(part) for part in (self.pattern, self.width) if part) or "dense"

    @property
    def label(self) -> str:
        """In words: "2:4, 4 bits in groups of 64"."""
        words = [str(self.pattern)] if self.pattern else []
        if self.width:
            groups = f" in groups of {self.width.group}" if self.width.group else ""
            words.append(f"{self.width.bits} bits{groups}")
        return ", ".join(words) or "16 bits"

    @property
    def quantized(self) -> bool:
        return self.width is not None

    @property
    def sparsity(self) -> float:
        """Share of the weights that are dropped."""
        return self.pattern.drop if self.pattern else 0.0

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` inputs can be stored so."""
        group = self.width.group if self.width else 0
        divides = not group or columns % group == 0
        return divides and (self.pattern is None or self.pattern.divides(columns))

    def require_fit(self, name: str, columns: int, outside: bool) -> None:
        """Refuse a layer of `columns` inputs that cannot be stored so; `outside`: of the blocks.
        Raises ConfigError: it says why."""
        why = "" if self.fits(columns) else f"It does not divide its {columns} inputs."
        if self.pattern and outside:
            why = "Embedding and head are rounded only, as in a run."
        if why:
            what, do = f"{name} cannot be stored as {self}.", "Choose another format for it."
            raise ConfigError(what, why, do, "formats")

    def bits_per_weight(self, columns: int) -> float:
        """Bits a weight of a row of `columns` inputs takes, with scales, indices and masks."""
        bits, scales = (
            (DENSE_BITS, 0.0)
            if self.width is None
            else (self.width.bits, SCALE_BITS / (self.width.group or columns))
        )
        if self.pattern is None:
            return bits + scales
        index = (self.pattern.group - 1).bit_length() if self.pattern.structured else 0
        mask = 0 if self.pattern.structured else 1
        return (1 - self.sparsity) * (bits + index) + mask + scales

    def nbytes(self, rows: int, columns: int) -> float:
        """Bytes of a layer [rows, columns]."""
        return rows * columns * self.bits_per_weight(columns) / 8
