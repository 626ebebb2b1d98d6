"""What a run can be told: the base of all configs, and one option of one. Form, command line, API,
validation and stored record are made of the same declaration:

    batch: int = option(8, "Batch size", ge=1, unit="sequences", advanced=True)
    \"""Sequences per step.\"""

`Plan` is what a run then does to each layer of its model. Does not import torch.
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

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]  # of forward passes


class Options(BaseModel):
    """A config, or a part of one. The text below an option is its description, as pydantic's
    `use_attribute_docstrings` has it, which takes far longer and keeps its line breaks."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, text in _texts_below(cls).items():
            if name in cls.model_fields:
                cls.model_fields[name].description = " ".join(text.split())
        cls.model_rebuild(force=True, raise_errors=False)


def _texts_below(cls: type) -> dict[str, str]:
    """Option -> the text below it, of those that a class declares itself."""
    found = {}
    for node in _source(sys.modules[cls.__module__].__file__).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for pair in pairwise(node.body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        found[name] = text
    return found


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
    """An option of a config, with the `facts` of a pydantic field: limits, examples, a description
    that is computed.

    Args:
        unit: of a number, in words.
        advanced: whether forms show it on demand.
        choices: what forms suggest, of what is on this machine.
        many: whether it is a list, with commas.
        lines: of a text that may have several.
    """
    about = {
        "unit": unit,
        "advanced": advanced,
        "choices": choices,
        "many": many,
        "lines": lines,
    }
    if extra := {name: value for name, value in about.items() if value}:
        facts["json_schema_extra"] = extra
    if title is not None:  # else it is that of the annotated type
        facts["title"] = title
    return Field(default, **facts)


class Plan(BaseModel, ABC):
    """What a run does to each layer of its model.

    Made and checked when the run is submitted, stored with it as JSON, and executed by its job
    without further checks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """What is done, in words -> full names of the layers it is done to."""
        return {}

    @abstractmethod
    def check(self, config: Any) -> None:
        """Raise `ValueError` or `ConfigError` unless `config` gives this plan for its layers."""
