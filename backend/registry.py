"""Registries of pruners, quantizers and drafters. To add one, write one file with one decorator.

    PRUNERS = Registry[Pruner](Declarations("pruner", "backend.pruning.pruners"))

    @pruner("wanda", needs=StatisticsLevel.ENERGY)
    def wanda(W, inputs, pattern, damping): ...

Forms, the CLI and estimates need the names and literal facts of an entry (`needs_energy`) but must
not load torch. `Declarations` therefore parses the modules of the package and those in
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
Decorated = TypeVar("Decorated")


@dataclass(frozen=True)
class Declaration:
    """An entry as declared in its source.

    Attributes:
        module: imported when the entry is first used.
        facts: the decorator's literal keyword arguments.
    """

    name: str
    module: str
    facts: Mapping[str, Any]


class Declarations(Mapping[str, Declaration]):
    """Maps names to the declarations in some packages and in the plugins, without importing them.
    `decorator` is the name of the registering decorator. A plugin's entry replaces one with the
    same name from a package."""

    def __init__(self, decorator: str, *packages: str) -> None:
        self.decorator, self.packages = decorator, packages

    @cached_property
    def _entries(self) -> dict[str, Declaration]:
        modules = []
        for package in self.packages:
            file = source_file(package)
            paths = sorted(file.parent.glob("[!_]*.py")) if file else []
            modules += [f"{package}.{path.stem}" for path in paths]
        modules += settings().plugins
        return {
            declaration.name: declaration
            for module in modules
            for declaration in _declared(module, self.decorator)
        }

    def __getitem__(self, name: str) -> Declaration:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Maps names to entries. An entry's module is imported on first use."""

    def __init__(self, declarations: Declarations) -> None:
        self.declarations = declarations
        self._entries: dict[str, Entry] = {}

    def registering(
        self, name: str, entry: Callable[[Any], Entry]
    ) -> Callable[[Decorated], Decorated]:
        """Return a decorator that registers `entry(decorated)` and returns `decorated`
        unchanged."""

        def register(decorated: Decorated) -> Decorated:
            self._entries[name] = entry(decorated)
            return decorated

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
    """Return the source file of a module, or None."""
    spec = find_spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _declared(module: str, decorator: str) -> Iterator[Declaration]:
    """Yield the entries that `module` registers with `decorator`, read from its syntax tree."""
    file = source_file(module)
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file else ():
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator and call.args:
                literals = {k.arg: _literal(k.value) for k in call.keywords if k.arg}
                facts = {name: value for name, value in literals.items() if value is not None}
                yield Declaration(str(_literal(call.args[0])), module, facts)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, or None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
