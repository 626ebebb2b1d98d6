"""Which linears are pruned, and each to which pattern. Imports no torch.

    pattern      "2:4"                                   of every layer, unless
    overrides    "mlp.down_proj=4:8, self_attn.*=50%"    says otherwise; the last that fits counts
    exclude      "0.*, *.down_proj"                      these stay dense

A name with * and ? in it is held against what a layer is called inside its block (mlp.down_proj),
the same after the number of its block (0.mlp.down_proj), and its full name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Protocol

from backend.errors import ConfigRefused
from backend.methods.sds.pattern import Pattern

Overrides = tuple[tuple[str, Pattern], ...]
SHOWN = 4


class Layer(Protocol):
    """A linear of a model, or what is known of it before it is loaded."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def module(self) -> str: ...

    @property
    def columns(self) -> int: ...


class Choice(Protocol):
    """The fields of a config that say what is pruned, and how."""

    @property
    def pattern(self) -> str: ...

    @property
    def overrides(self) -> str: ...

    @property
    def exclude(self) -> str: ...


def read_names(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_overrides(text: str) -> Overrides:
    """The names and patterns of "mlp.down_proj=4:8, self_attn.*=50%".

    Raises:
        ValueError: not such a list; the message says what one looks like.
    """
    found = []
    for part in read_names(text):
        name, sign, pattern = (piece.strip() for piece in part.partition("="))
        if not sign or not name:
            raise ValueError(f"{part!r} is not name=pattern. Write mlp.down_proj=4:8.")
        found.append((name, Pattern.parse(pattern)))
    return tuple(found)


def fits(name: str, layer: Layer) -> bool:
    """Whether `name` means `layer`."""
    called = (layer.module, f"{layer.block}.{layer.module}", layer.name)
    return any(fnmatchcase(one, name) for one in called)


def layer_patterns(layers: Collection[Layer], choice: Choice) -> dict[str, Pattern]:
    """Full name -> pattern of every layer that is pruned.

    Raises:
        ConfigRefused: a name that fits no layer, a pattern that does not divide one, or nothing
            left to prune.
    """
    overrides, excluded = read_overrides(choice.overrides), read_names(choice.exclude)
    refuse_unknown((name for name, _ in overrides), layers, "overrides")
    refuse_unknown(excluded, layers, "exclude")
    chosen = [x for x in layers if not any(fits(name, x) for name in excluded)]
    if not chosen:
        raise ConfigRefused(
            "No layer is left to prune.",
            f"{choice.exclude} fits all of them.",
            "Exclude fewer.",
            field="exclude",
        )
    plain, patterns = Pattern.parse(choice.pattern), dict[str, Pattern]()
    inputs: dict[str, dict[Pattern, dict[str, int]]] = {"pattern": {}, "overrides": {}}
    for layer in chosen:
        special = [pattern for name, pattern in overrides if fits(name, layer)]
        pattern = special[-1] if special else plain
        patterns[layer.name] = pattern
        of_field = inputs["overrides" if special else "pattern"]
        of_field.setdefault(pattern, {})[layer.name] = layer.columns
    for field, by_pattern in inputs.items():
        for pattern, columns in by_pattern.items():
            pattern.require_fit(columns, field)
    return patterns


def refuse_unknown(names: Iterable[str], layers: Collection[Layer], field: str) -> None:
    """Refuses names that mean no layer.

    Raises:
        ConfigRefused: with `field`; says what names there are.
    """
    for name in names:
        if not any(fits(name, layer) for layer in layers):
            known = list(dict.fromkeys(layer.module for layer in layers))
            more = ", …" if len(known) > SHOWN else ""
            raise ConfigRefused(
                f"{name} fits no layer of this model.",
                f"A block has {', '.join(known[:SHOWN])}{more}.",
                "Write such a name, 0.* for all of block 0, or *.down_proj.",
                field=field,
            )
