"""Layer names and patterns with the wildcards * and ?. Does not import torch.

A pattern is matched against the name of a layer inside its block (mlp.down_proj), that name with
the block index (0.mlp.down_proj), and the full name."""

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator, Field

from backend.errors import ConfigError
from backend.models.families.stored import IN_BLOCK, LinearShape

MAX_NAMES = 4  # layers listed in an error message
MAX_LISTED, MAX_LETTERS = 1000, 20_000  # of a list of names


class NamedLayer(Protocol):
    """A linear layer of a model, loaded or not."""

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


def layer_named(name: str) -> LinearShape:
    """The layer of that full name, of which no more is known: any group size divides its inputs.
    Raises ValueError: it is no layer of a block."""
    if not (match := IN_BLOCK.fullmatch(name)):
        raise ValueError(f"{name[:80]!r} is no layer of a block")
    return LinearShape(name, int(match[1]), match[2], 0, 0)


def read_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list. Raises ValueError: there are more than `MAX_LISTED`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(names) > MAX_LISTED:
        raise ValueError(f"{len(names):,} entries, of at most {MAX_LISTED:,}. * stands for many")
    return names


def read_assignments(
    text: str, parse: Callable[[str], V], value: str, example: str
) -> tuple[tuple[str, V], ...]:
    """The names and values of a list "name=value, ...". `value`: what a value is called. Raises
    ValueError: not such a list, or `parse` refuses a value; the message shows the syntax."""
    read = []
    for part in read_names(text):
        name, sign, written = (piece.strip() for piece in part.partition("="))
        if not sign or not name:
            raise ValueError(f"{part[:80]!r} is not name={value}. Write {example}.")
        read.append((name, parse(written)))
    return tuple(read)


# a config field: layer names, comma-separated
LayerNames = Annotated[
    str, Field(max_length=MAX_LETTERS), AfterValidator(lambda text: ", ".join(read_names(text)))
]


def fits(name: str, layer: NamedLayer) -> bool:
    """Whether the pattern `name` matches `layer`."""
    names = (layer.module, f"{layer.block}.{layer.module}", layer.name)
    return any(fnmatchcase(candidate, name) for candidate in names)


def check_layer_patterns(names: Iterable[str], layers: Collection[NamedLayer], field: str) -> None:
    """Check that every pattern matches a layer. Raises ConfigError: one matches none; lists the
    layer names."""
    for name in names:
        if not any(fits(name, layer) for layer in layers):
            known = list(dict.fromkeys(layer.module for layer in layers))
            more = ", …" if len(known) > MAX_NAMES else ""
            raise ConfigError(
                f"{name[:80]} matches no layer of this model.",
                f"The layers of a block are {', '.join(known[:MAX_NAMES])}{more}.",
                "Use one of these names, or a pattern: 0.* (all of block 0) or *.down_proj.",
                field=field,
            )


def select_layers(layers: Collection[L], exclude: str, action: str) -> list[L]:
    """The layers that match none of the patterns in the list `exclude`, in order; `action`: what is
    done to them, such as "prune". `ConfigError` if a pattern matches no layer, or none is left."""
    excluded = read_names(exclude)
    check_layer_patterns(excluded, layers, "exclude")
    chosen = [x for x in layers if not any(fits(name, x) for name in excluded)]
    if not chosen:
        raise ConfigError(
            f"No layer is left to {action}.",
            f"All layers match {exclude}.",
            "Exclude fewer layers.",
            field="exclude",
        )
    return chosen
