"""Bits and group size of a layer, as text: "int4-g64". Does not import torch."""

import re
from dataclasses import dataclass

from backend.models.layer_names import read_assignments

MIN_BITS, MAX_BITS = 2, 8
SYNTAX = re.compile(r"int(\d{1,2})(?:-g(\d{1,5}))?")


@dataclass(frozen=True)
class Width:
    """How wide the codes of a layer are, and how many inputs share a scale; 0: the whole row."""

    bits: int
    group: int = 0

    @classmethod
    def parse(cls, text: str) -> "Width":
        """Parse "int4-g64" or "int8". Raises ValueError: it is neither, with the syntax."""
        match = SYNTAX.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text[:40]!r} is no width. Write int4-g64.")
        if not MIN_BITS <= int(match[1]) <= MAX_BITS:
            raise ValueError(f"{match[1]} bits are not offered: {MIN_BITS} to {MAX_BITS}.")
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "")


def read_overrides(text: str) -> tuple[tuple[str, Width], ...]:
    """Parse "mlp.down_proj=int4-g32, 0.*=int8-g64" into names and widths.

    Raises:
        ValueError: not such a list; the message shows the syntax.
    """
    return read_assignments(text, Width.parse, "format", "mlp.down_proj=int4-g64")
