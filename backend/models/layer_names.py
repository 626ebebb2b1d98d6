"""What layers are called, and names with * and ? in them that mean several. Does not import torch.

A name is held against what a layer is called inside its block (mlp.down_proj), the same after the
number of its block (0.mlp.down_proj), and its full name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Protocol

from backend.errors import ConfigError

SHOWN = 4


class NamedLayer(Protocol):
    """A linear of a model, or what is known of it before it is loaded."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def module(self) -> str: ...

    @property
    def columns(self) -> int: ...


def read_names(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fits(name: str, layer: NamedLayer) -> bool:
    """Whether `name` means `layer`."""
    called = (layer.module, f"{layer.block}.{layer.module}", layer.name)
    return any(fnmatchcase(one, name) for one in called)


def refuse_unknown(names: Iterable[str], layers: Collection[NamedLayer], field: str) -> None:
    """Refuses names that mean no layer.

    Raises:
        ConfigError: with `field`; says what names there are.
    """
    for name in names:
        if not any(fits(name, layer) for layer in layers):
            known = list(dict.fromkeys(layer.module for layer in layers))
            more = ", …" if len(known) > SHOWN else ""
            raise ConfigError(
                f"{name} fits no layer of this model.",
                f"A block has {', '.join(known[:SHOWN])}{more}.",
                "Write such a name, 0.* for all of block 0, or *.down_proj.",
                field=field,
            )
