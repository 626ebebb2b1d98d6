"""The model a job decodes with: one of the catalogue, or one a run has saved, with packed weights
where it was exported so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backend.errors import ConfigError, ModelError, for_field
from backend.models.facts import ModelFacts
from backend.models.sources.catalogue import inspect, require_tokenizer
from jobs.fields.model import DEFAULT_MODEL, ModelConfig
from jobs.fields.saved_models import is_run, saved_config, saved_model
from jobs.fields.types import SavedModelSpec


class BaseConfig(ModelConfig):
    """Which model decodes."""

    model: SavedModelSpec = DEFAULT_MODEL


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
    """The model `spec` names.

    Raises:
        ConfigError: the run does not exist, or has saved no model.
        ModelError: there is no such model, it is not supported, or it cannot read text.
    """
    source, base, packed = spec, spec, False
    if is_run(spec):
        source, base = saved_model(spec, field)
        packed = "quantization_config" in saved_config(Path(source), spec, field)
    facts = inspect(base if packed else source)
    require_tokenizer(source, facts.vocabulary)
    return DecodingModel(source, facts, packed)


def require_decoder(base: DecodingModel, field: str = "model") -> None:
    """Raise `ModelError` for a model that the decoding loop cannot run."""
    try:
        base.facts.require_decodable()
    except ModelError as error:
        raise for_field(error, field) from error


def require_precision(base: DecodingModel, precision: str) -> None:
    """Raise `ConfigError` where packed weights would have to compute in float32."""
    if base.packed and precision == "float32":
        raise ConfigError(
            "Packed weights do not support float32.",
            "Their kernel computes in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )
