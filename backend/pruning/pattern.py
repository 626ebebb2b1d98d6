"""Sparsity patterns (n:m or a percentage) and their assignment to layers. Does not import torch.

    pattern      "2:4"                                   default pattern of every layer
    overrides    "mlp.down_proj=4:8, self_attn.*=50%"    replace the default; the last match wins
    exclude      "0.*, *.down_proj"                      layers that stay dense

`backend.models.layer_names` defines the syntax of the names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from backend.errors import ConfigError
from backend.models.layer_names import read_assignments

LARGEST_GROUP = 64  # largest group size that an error suggests
MAX_NAMES = 3  # number of layers that an error lists
PLACES = 10  # decimal places of a percentage, so that parsing its text returns the same value


@dataclass(frozen=True)
class Pattern:
    """Sparsity pattern, n:m or unstructured.

    n:m keeps `n` of every `m` inputs of a row. An unstructured pattern drops a share of the weights
    of a row, a block of columns or the layer, depending on the pruner.

    Attributes:
        keep: n of n:m; 0 if unstructured.
        group: m of n:m; 0 if unstructured.
        drop: share of weights to drop, 0 < drop < 1.
    """

    keep: int
    group: int
    drop: float

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Parse "2:4", "50%" or "0.5".

        Raises:
            ValueError: `text` is not a pattern; the message shows the syntax.
        """
        text = text.strip()
        if match := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text):
            keep, group = int(match[1]), int(match[2])
            if not 0 < keep < group:
                raise ValueError(f"{text} keeps {keep} of {group}: need 0 < n < m, as in 2:4.")
            return cls(keep, group, 1 - keep / group)
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text):
            drop = round(float(match[1]) / (100 if match[2] else 1), PLACES + 2)
            if not 0 < drop < 1:
                if match[2]:
                    raise ValueError(f"{text} is not between 0 and 100 %, as in 50%.")
                percent = f" For a percentage write {text}%." if 1 <= drop < 100 else ""
                raise ValueError(f"The share {text} is not between 0 and 1.{percent}")
            return cls(0, 0, drop)
        raise ValueError(f"{text!r} is not a pattern. Write 2:4, 4:8 or 50%.")

    @property
    def structured(self) -> bool:
        return self.group > 0

    def divides(self, columns: int) -> bool:
        """Return True if rows of `columns` inputs split into whole groups."""
        return not self.structured or columns % self.group == 0

    def require_fit(self, columns: Mapping[str, int], field: str = "pattern") -> None:
        """Reject layers whose rows do not split into whole groups.

        Args:
            columns: layer name -> number of inputs.
            field: config field that holds the pattern.

        Raises:
            ConfigError: lists the layers, and the group sizes that would fit.
        """
        unfit = [name for name, inputs in columns.items() if not self.divides(inputs)]
        if not unfit:
            return
        examples = ", ".join(f"{name} ({columns[name]} inputs)" for name in unfit[:MAX_NAMES])
        more = f" and {len(unfit) - MAX_NAMES} more" if len(unfit) > MAX_NAMES else ""
        common = gcd(*columns.values())
        sizes = [str(size) for size in range(2, LARGEST_GROUP + 1) if common % size == 0]
        fitting = f"Groups of {', '.join(sizes)} fit" if sizes else "No groups fit"
        raise ConfigError(
            f"The pattern {self} does not fit this model.",
            f"Groups of {self.group} do not divide the inputs of {examples}{more}.",
            f"{fitting} every layer; a percentage always does.",
            field=field,
        )

    def __str__(self) -> str:
        if self.structured:
            return f"{self.keep}:{self.group}"
        return f"{100 * self.drop:.{PLACES}f}".rstrip("0").rstrip(".") + "%"


def _parse_if_text(value: Any) -> Any:
    return Pattern.parse(value) if isinstance(value, str) else value


# Type of a config field: accepts text or a `Pattern`, and serializes to the canonical text.
PatternField = Annotated[
    Pattern,
    BeforeValidator(_parse_if_text),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]


def read_overrides(text: str) -> tuple[tuple[str, Pattern], ...]:
    """Parse "mlp.down_proj=4:8, self_attn.*=50%" into names and patterns.

    Raises:
        ValueError: `text` is not a list of overrides; the message shows the syntax.
    """
    return read_assignments(text, Pattern.parse, "pattern", "mlp.down_proj=4:8")
