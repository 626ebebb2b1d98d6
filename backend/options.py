"""Base class of all configs, and the declaration of a config field. The form, the command line, the
API, validation and the stored record are all generated from one declaration:

    batch: int = option(8, "Batch size", ge=1, unit="sequences", advanced=True)
    \"""Sequences per step.\"""

`Plan` lists what a run does to each layer of its model. Does not import torch.
"""

import ast
import sys
from abc import ABC, abstractmethod
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]  # precision of forward passes


class Options(BaseModel):
    """A config or a part of one. The docstring below a field becomes its description. This is
    faster than pydantic's `use_attribute_docstrings` and joins the lines."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, text in _field_docstrings(cls).items():
            if name in cls.model_fields:
                cls.model_fields[name].description = " ".join(text.split())
        cls.model_rebuild(force=True, raise_errors=False)


def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstrings below the fields that a class declares itself."""
    docstrings = {}
    for node in _source(sys.modules[cls.__module__].__file__).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for pair in pairwise(node.body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        docstrings[name] = text
    return docstrings


@lru_cache
def _source(file: str | None) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8") if file else "")


def option(
    default: Any = PydanticUndefined,
    title: str | None = None,
    *,
    unit: str = "",
    advanced: bool = False,
    choices: str = "",
    many: bool = False,
    lines: int = 0,
    **facts: Any,
) -> Any:
    """Declare a config field.

    Args:
        unit: unit of a number, spelled out.
        advanced: True if forms show the field on demand.
        choices: name of a list of values on this machine that forms suggest.
        many: True for a comma-separated list.
        lines: height of a multi-line text field; 0 for a single line.
        **facts: arguments of `pydantic.Field`: limits, examples, a computed description.
    """
    form_hints = {
        "unit": unit,
        "advanced": advanced,
        "choices": choices,
        "many": many,
        "lines": lines,
    }
    if extra := {name: value for name, value in form_hints.items() if value}:
        facts["json_schema_extra"] = extra
    if title is not None:  # otherwise the annotated type's title is used
        facts["title"] = title
    return Field(default, **facts)


class Plan(BaseModel, ABC):
    """The operations of a run on each layer of its model.

    Built and checked when the run is submitted, stored with it as JSON, and executed without
    further checks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Map a description of each operation to the full names of its layers."""
        return {}

    @property
    def formats(self) -> dict[str, str]:
        """Map the full name of every layer to its format, such as "2:4", "int4-g64" or "dense"."""
        return {}

    @abstractmethod
    def check(self, config: Any) -> None:
        """Raise `ValueError` or `ConfigError` unless `config` yields this plan for its layers."""
