"""Types of GGUF files, as fields name them, and what a model's file can be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from backend.errors import ConfigError
from backend.export.formats import read_layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.export.gguf.types import GGUFType, choose_type
from backend.models.layer_names import read_names
from backend.models.sources.headers import read_config
from jobs.fields.base_model import ResolvedModel

LLAMA_CPP = "llama_cpp"  # the package that reads them
TYPES: tuple[GGUFType, ...] = get_args(GGUFType)


def types_named(text: str) -> list[GGUFType]:
    """The types in a list with commas, none twice; ValueError for an unknown one."""
    named = dict.fromkeys(read_names(text))
    if unknown := [name for name in named if name not in TYPES]:
        raise ValueError(f"{unknown[0]} is none of {', '.join(TYPES)}")
    return [type for type in TYPES if type in named]


def check_folder(folder: Path) -> None:
    """Refuse a model or a tokenizer that GGUF cannot express."""
    sizes = architecture_of(read_config(folder))
    vocabulary_of(folder, sizes.vocabulary)


def exported_type(wanted: GGUFType, base: ResolvedModel, field: str = "type") -> str:
    """The type of the linear layers; ConfigError where it cannot hold the codes of the model."""
    layout = read_layout(Path(base.source)) if base.packed else None
    try:
        return choose_type(wanted, layout, base.facts.dtype)
    except ConfigError as error:
        raise ConfigError(error.what, error.why, error.do, field) from error


def require_llama_cpp(field: str) -> None:
    """Refuse where the package is missing."""
    if find_spec(LLAMA_CPP) is None:
        raise ConfigError(
            "llama.cpp is not installed.",
            "It is optional: the package llama-cpp-python, which is built while it is installed.",
            "Run CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python in this environment, or "
            "choose no type.",
            field,
        )
