"""Types of GGUF files, as fields name them, and what a model's file can be."""

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
from backend.models.sources.spec import on_disk
from backend.quantization.plan import QuantizationPlan
from jobs.fields.models import ResolvedModel

LLAMA_CPP = "llama_cpp"  # the package that reads them
TYPES: tuple[types.GGUFType, ...] = get_args(types.GGUFType)


def types_named(text: str) -> list[types.GGUFType]:
    """The types in a list with commas, none twice; ValueError for an unknown one."""
    named = dict.fromkeys(read_names(text))
    if unknown := [name for name in named if name not in TYPES]:
        raise ValueError(f"{unknown[0]} is none of {', '.join(TYPES)}")
    return [type for type in TYPES if type in named]


def check_source(source: str) -> None:
    """Refuse a model or a tokenizer that GGUF cannot express, as far as it is on this machine; of a
    file that has not been converted yet, the architecture."""
    if folder := local_folder(source):
        vocabulary_of(folder, architecture_of(read_config(folder)).vocabulary)
    elif source.endswith(".gguf"):
        config, _, _ = read_gguf(on_disk(source))
        kind = config["model_type"]
        if {kind, f"{kind}_text"}.isdisjoint(ARCHITECTURES):
            architecture_of(config)


def exported_type(wanted: types.GGUFType, base: ResolvedModel, field: str = "type") -> str:
    """The type of the linear layers; ConfigError where it cannot hold the codes of the model."""
    with for_field(field):
        return types.choose_type(wanted, base.layout, base.facts.dtype)


def exported_embedding(wanted: types.EmbeddingType, type: str, base: ResolvedModel) -> str:
    """The type of embedding and head beside linear layers of `type`; ConfigError where they hold
    codes, which only one type suits."""
    embeddings, layout = base.facts.embeddings, base.layout
    packed = [x for x in embeddings if x.name in _packed(base, layout)]
    if packed and wanted != "auto":
        raise ConfigError(
            f"Embedding and head cannot become {wanted}.",
            "They are quantized already, and their codes are carried over as they are.",
            "Choose auto.",
            "embedding",
        )
    columns = embeddings[0].columns if embeddings else base.facts.hidden
    if layout and packed:
        return types.carried_type(type, layout.of(packed[0].name), columns)
    return types.fitting(
        types.embedding_type(wanted, type, bool(layout), base.facts.dtype), columns
    )


def _packed(base: ResolvedModel, layout: Layout | None) -> Collection[str]:
    """The names of the layers that hold codes."""
    if isinstance(base.plan, QuantizationPlan):
        return base.plan.embedding.layers if base.plan.embedding else ()
    return packed_layers(Path(base.source)) if layout else ()


def require_llama_cpp(field: str) -> None:
    if find_spec(LLAMA_CPP) is None:
        raise ConfigError(
            "llama.cpp is not installed.",
            "It is optional: the package llama-cpp-python, which is built while it is installed.",
            "Run CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python in this environment, or "
            "choose no type.",
            field,
        )
