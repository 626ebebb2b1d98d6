"""The models that are decoded with: those of the catalogue, and what a run has saved, on packed
weights where it was exported so. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from backend.errors import ConfigError
from backend.models.facts import ModelFacts
from backend.models.sources.catalogue import inspect
from jobs.evaluation.run import RUN, saved_model
from jobs.fields.model import ModelConfig

if TYPE_CHECKING:
    from backend.models.loading import LoadedModel
    from jobs.runtime.context import JobContext


class BaseConfig(ModelConfig):
    """Which model writes."""

    model: str = Field(
        "smollm2-135m",
        min_length=1,
        max_length=300,
        title="Model",
        description="A name from the list, a run that saved a model, a hub id (org/name), a "
        "folder, or a .gguf file.",
        json_schema_extra={"choices": "saved"},
    )


@dataclass(frozen=True)
class DecodingModel:
    """A model to decode with.

    Attributes:
        source: what is loaded: a spec of the catalogue, or the folder a run saved.
        facts: of a quantised folder those of the model it was made of, which has the same shape.
        packed: whether the folder holds quantised weights; they run in bfloat16 on the CPU.
    """

    source: str
    facts: ModelFacts
    packed: bool = False


def resolve_model(spec: str, field: str = "model") -> DecodingModel:
    """The base `spec` names.

    Raises:
        ConfigRefused: the run is not there, or has saved no model.
        ModelRefused: there is no such model, or it cannot be treated.
    """
    if not RUN.fullmatch(spec):
        return DecodingModel(spec, inspect(spec))
    folder, began = saved_model(spec, field)
    packed = "quantization_config" in saved_config(Path(folder), spec, field)
    return DecodingModel(folder, inspect(began if packed else folder), packed)


def saved_config(folder: Path, run: str, field: str) -> dict[str, Any]:
    """The config.json in a folder that a run has saved.

    Raises:
        ConfigRefused: it is gone or damaged.
    """
    try:
        found: dict[str, Any] = dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        why = f"{folder.name}/config.json cannot be read: {error}."
        raise ConfigError(f"What {run} saved is not whole.", why, "Run it anew.", field) from error
    return found


def refuse_precision(base: DecodingModel, precision: str) -> None:
    """Raises `ConfigError` where packed weights are asked to compute in float32."""
    if base.packed and precision == "float32":
        raise ConfigError(
            "Packed weights do not compute in float32.",
            "The operator that reads them computes in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )


def load_model(spec: str, device: str, precision: str, context: JobContext) -> LoadedModel:
    """The base, frozen, in the precision asked for."""
    import torch

    from backend.models.loading import load
    from backend.models.precision import resolve_dtype

    base = resolve_model(spec)
    if base.packed:
        context.log(f"Loading the packed weights of {spec}; they run on the CPU in bfloat16.")
        context.environment(precision="bfloat16", device="cpu")
        return _packed(base, context)
    precision = resolve_dtype(precision, torch.device(device))
    context.log(f"Loading {spec} on {device} in {precision}.")
    context.environment(precision=precision)
    loaded = load(base.source, device, getattr(torch, precision), context.log)
    loaded.model.requires_grad_(False)
    return loaded


def _packed(base: DecodingModel, context: JobContext) -> LoadedModel:
    from transformers import AutoTokenizer

    from backend.export.reading import load_packed
    from backend.models.loading import LoadedModel
    from backend.models.sources.headers import OPTIONS

    tokenizer = AutoTokenizer.from_pretrained(base.source, **OPTIONS)
    model = load_packed(Path(base.source), context.log).requires_grad_(False)
    return LoadedModel(model, tokenizer, base.facts)
