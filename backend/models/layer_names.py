"""Layer names, and patterns with the wildcards * and ?. Does not import torch.

A pattern matches the name of a layer inside its block (mlp.down_proj), that name with the block
index (0.mlp.down_proj), or the full name."""

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator, Field

from backend.errors import ConfigError
from backend.models.families.stored import IN_BLOCK, LinearShape

MAX_NAMES = 4  # layer names in an error message
MAX_LISTED, MAX_LETTERS = 1000, 20_000  # names and characters in a list


class NamedLayer(Protocol):
    """A layer of a model, which need not be loaded."""

    @property
    def name(self) -> str: ...

    @property
    def block(self) -> int: ...

    @property
    def module(self) -> str: ...

    @property
    def columns(self) -> int: ...


L = TypeVar("L", bound=NamedLayer)
V = TypeVar("V")


def layer_from_name(name: str) -> LinearShape:
    """Create a layer from its full name. Its shape is (0, 0), so that any group size divides its
    inputs. Raises ValueError: the name is not that of a layer in a block."""
    if not (match := IN_BLOCK.fullmatch(name)):
        raise ValueError(f"{name[:80]!r} is not a layer of a block")
    return LinearShape(name, int(match[1]), match[2], 0, 0)


def read_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of names. Raises ValueError: more than `MAX_LISTED` names."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(names) > MAX_LISTED:
        raise ValueError(
            f"{len(names):,} entries; at most {MAX_LISTED:,} are allowed. Use * for many"
        )
    return names


def read_assignments(
    text: str, parse: Callable[[str], V], value: str, example: str
) -> tuple[tuple[str, V], ...]:
    """Parse a list "name=value, ...".

    Args:
        text: list to parse.
        parse: converts a value.
        value: term for a value in error messages.
        example: example of the syntax in error messages.

    Raises:
        ValueError: the text is not such a list, or `parse` rejects a value.
    """
    assignments = []
    for part in read_names(text):
        name, sign, value_text = (piece.strip() for piece in part.partition("="))
        if not sign or not name:
            raise ValueError(f"{part[:80]!r} is not name={value}. Write {example}.")
        assignments.append((name, parse(value_text)))
    return tuple(assignments)


# type of a config field: comma-separated layer names
LayerNames = Annotated[
    str, Field(max_length=MAX_LETTERS), AfterValidator(lambda text: ", ".join(read_names(text)))
]


def fits(name: str, layer: NamedLayer) -> bool:
    """Return True if the pattern `name` matches `layer`."""
    names = (layer.module, f"{layer.block}.{layer.module}", layer.name)
    return any(fnmatchcase(candidate, name) for candidate in names)


def check_layer_patterns(names: Iterable[str], layers: Collection[NamedLayer], field: str) -> None:
    """Check that every pattern matches a layer. Raises ConfigError: a pattern matches none; the
    error lists layer names."""
    for name in names:
        if not any(fits(name, layer) for layer in layers):
            modules = list(dict.fromkeys(layer.module for layer in layers))
            more = ", …" if len(modules) > MAX_NAMES else ""
            raise ConfigError(
                f"{name[:80]} matches no layer of this model.",
                f"The layers of a block are {', '.join(modules[:MAX_NAMES])}{more}.",
                "Use one of these names, or a pattern: 0.* (all of block 0) or *.down_proj.",
                field=field,
            )


def select_layers(layers: Collection[L], exclude: str, action: str) -> list[L]:
    """Select the layers that match none of the patterns in the list `exclude`.

    Args:
        layers: layers to select from; their order is kept.
        exclude: comma-separated patterns.
        action: verb for error messages, such as "prune".

    Raises:
        ConfigError: a pattern matches no layer, or no layer is left.
    """
    patterns = read_names(exclude)
    check_layer_patterns(patterns, layers, "exclude")
    selected = [x for x in layers if not any(fits(pattern, x) for pattern in patterns)]
    if not selected:
        raise ConfigError(
            f"No layer is left to {action}.",
            f"All layers match {exclude}.",
            "Exclude fewer layers.",
            field="exclude",
        )
    return selected
