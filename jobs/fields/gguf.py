"""GGUF types as config fields, and checks that a model can be exported to them."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from backend.errors import ConfigError, for_field
from backend.export.formats import Layout
from backend.export.gguf import types
from backend.export.gguf.architecture import ARCHITECTURES, architecture_of
from backend.export.gguf.tokenizer import vocabulary_of
from backend.models.layer_names import read_names
from backend.models.sources.catalog import local_folder
from backend.models.sources.gguf import read_gguf
from backend.models.sources.headers import read_config
from backend.models.sources.quantized import packed_layers
from backend.models.sources.spec import resolve_model_path
from backend.quantization.plan import QuantizationPlan
from jobs.fields.models import ResolvedModel

LLAMA_CPP = "llama_cpp"  # Python package that reads GGUF files
TYPES: tuple[types.GGUFType, ...] = get_args(types.GGUFType)


def parse_types(text: str) -> list[types.GGUFType]:
    """Parse a comma-separated list of types; return them without duplicates, in the order of
    `TYPES`.

    Raises:
        ValueError: a name is not a GGUF type.
    """
    names = dict.fromkeys(read_names(text))
    if unknown := [name for name in names if name not in TYPES]:
        raise ValueError(f"{unknown[0]} is not one of {', '.join(TYPES)}")
    return [type for type in TYPES if type in names]


def check_source(source: str) -> None:
    """Raise an error if a GGUF file cannot represent the model or its tokenizer.

    For a GGUF file that has not been converted yet, only the architecture is checked. A model that
    has not been downloaded yet is not checked.
    """
    if folder := local_folder(source):
        vocabulary_of(folder, architecture_of(read_config(folder)).vocabulary)
    elif source.endswith(".gguf"):
        config, _, _ = read_gguf(resolve_model_path(source))
        model_type = config["model_type"]
        if {model_type, f"{model_type}_text"}.isdisjoint(ARCHITECTURES):
            architecture_of(config)


def exported_type(requested: types.GGUFType, model: ResolvedModel, field: str = "type") -> str:
    """Return the GGUF type of the linear layers.

    Raises:
        ConfigError: the model is quantized, and its codes do not fit the requested type.
    """
    with for_field(field):
        return types.choose_type(requested, model.layout, model.facts.dtype)


def exported_embedding(
    requested: types.EmbeddingType, linear_type: str, model: ResolvedModel
) -> str:
    """Return the GGUF type of the embedding and the head.

    Raises:
        ConfigError: they are already quantized, but the requested type is not "auto".
    """
    embeddings, layout = model.facts.embeddings, model.layout
    quantized = [matrix for matrix in embeddings if matrix.name in _quantized_layers(model, layout)]
    if quantized and requested != "auto":
        raise ConfigError(
            f"Embedding and head cannot be exported as {requested}.",
            "They are already quantized, and their codes are copied unchanged.",
            "Choose auto.",
            "embedding",
        )
    columns = embeddings[0].columns if embeddings else model.facts.hidden
    if layout and quantized:
        return types.type_for_codes(linear_type, layout.of(quantized[0].name), columns)
    return types.fitting(
        types.embedding_type(requested, linear_type, bool(layout), model.facts.dtype), columns
    )


def _quantized_layers(model: ResolvedModel, layout: Layout | None) -> Collection[str]:
    """Return the names of the layers that are already quantized."""
    if isinstance(model.plan, QuantizationPlan):
        return model.plan.embedding.layers if model.plan.embedding else ()
    return packed_layers(Path(model.source)) if layout else ()


def require_llama_cpp(field: str) -> None:
    """Raise `ConfigError` for `field` if llama.cpp is not installed."""
    if find_spec(LLAMA_CPP) is None:
        raise ConfigError(
            "llama.cpp is not installed.",
            "The optional package llama-cpp-python is missing.",
            "Run CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python in this environment, or "
            "leave the type unset.",
            field,
        )
