"""Registries: adding a pruner, quantizer or drafter is one new file with one decorator.

    PRUNERS = Registry[Pruner](Declarations("pruner", "backend.pruning.pruners"))

    @pruner("wanda", needs=StatisticsLevel.ENERGY)
    def wanda(W, inputs, pattern, damping): ...

Forms, the CLI and estimates need the names and the plain facts of an entry (`needs_energy`), but
must not load torch. `Declarations` therefore parses the modules of the package and those in
SLIMSCOPE_PLUGINS: it lists every function or class decorated with `@pruner("name", ...)`, with the
keyword arguments that are literals. `Registry` imports the module when an entry is first used.
"""

import ast
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from backend.settings import settings

Entry = TypeVar("Entry")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Declaration:
    """An entry as its source declares it. `module`: imported when the entry is first used; `facts`:
    the decorator's keyword arguments that are literals."""

    name: str
    module: str
    facts: Mapping[str, Any]


class Declarations(Mapping[str, Declaration]):
    """Name -> declaration of every entry in some packages and in the plugins, which it does not
    import. `decorator`: the name of the one that registers an entry. Of two entries with the same
    name the last one counts: plugins come after the packages."""

    def __init__(self, decorator: str, *packages: str) -> None:
        self.decorator, self.packages = decorator, packages

    @cached_property
    def _found(self) -> dict[str, Declaration]:
        modules = []
        for package in self.packages:
            file = source_file(package)
            paths = sorted(file.parent.glob("[!_]*.py")) if file else []
            modules += [f"{package}.{path.stem}" for path in paths]
        modules += settings().plugins
        found = (each for module in modules for each in _declared(module, self.decorator))
        return {each.name: each for each in found}

    def __getitem__(self, name: str) -> Declaration:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Name -> entry; its module is imported on first use."""

    def __init__(self, declarations: Declarations) -> None:
        self.declarations = declarations
        self._entries: dict[str, Entry] = {}

    def registering(self, name: str, entry: Callable[[Any], Entry]) -> Callable[[Made], Made]:
        """The decorator that adds what `entry` makes of a function or class, and leaves that as it
        is."""

        def register(made: Made) -> Made:
            self._entries[name] = entry(made)
            return made

        return register

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            importlib.import_module(self.declarations[name].module)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.declarations, *self._entries]))

    def __len__(self) -> int:
        return len({*self.declarations, *self._entries})


def source_file(module: str) -> Path | None:
    """The source file of a module; None where there is none."""
    spec = find_spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _declared(module: str, decorator: str) -> Iterator[Declaration]:
    """The entries `module` registers with `decorator`, found in its syntax tree."""
    file = source_file(module)
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file else ():
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator and call.args:
                literals = {k.arg: _literal(k.value) for k in call.keywords if k.arg}
                facts = {name: value for name, value in literals.items() if value is not None}
                yield Declaration(str(_literal(call.args[0])), module, facts)


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
