"""The model a job works on: one of the catalogue, or one that a run has saved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import ConfigError, ModelError, for_field
from backend.models.facts import ModelFacts, default_text
from backend.models.sources.catalogue import inspect, require_tokenizer
from jobs.fields.saved_models import first_model, is_run, planned_run, saved_config, saved_model
from jobs.kind import kind_named


@dataclass(frozen=True)
class ResolvedModel:
    """A model to work on: the spec or folder that is loaded, and its facts, weights unpacked."""

    source: str
    facts: ModelFacts

    @property
    def packed(self) -> bool:
        """Whether the folder holds packed weights; they decode in bfloat16 on the CPU."""
        return bool(self.facts.quantized)


def resolve_model(spec: str, field: str = "model", reads: bool = True) -> ResolvedModel:
    """The model `spec` names, with a tokenizer if it `reads`.

    Raises:
        ConfigError: the run does not exist, or has saved no model.
        ModelError: there is no such model, it is not supported, or it cannot read text.
    """
    source = spec
    planned = planned_run(spec, "model") if is_run(spec) else None
    if planned:  # what it will save has the shapes of what it began with
        packed = planned.kind if kind_named(planned.kind).packs else ""
        before = resolve_model(str(planned.config["model"]), field, reads)
        return replace(before, facts=replace(before.facts, title=spec, quantized=packed))
    if is_run(spec):
        source = saved_model(spec, field)[0]
        saved_config(Path(source), spec, field)
        text = default_text(first_model(spec))
        facts = replace(inspect(source), title=spec, default_text=text)
    else:
        facts = inspect(spec)
    if reads:
        require_tokenizer(source, facts.vocabulary)
    return ResolvedModel(source, facts)


def decodable_model(spec: str, precision: str, field: str = "model") -> ResolvedModel:
    """The model `spec` names, which the decoding loop can run in this precision."""
    base = resolve_model(spec, field)
    try:
        base.facts.require_decodable()
    except ModelError as error:
        raise for_field(error, field) from error
    if base.packed and precision == "float32":
        raise ConfigError(
            "Packed weights do not support float32.",
            "Their kernel computes in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )
    return base
