"""The model a job works on: one of the catalogue, or one that a run has saved."""

from dataclasses import dataclass, replace
from pathlib import Path

from backend.errors import ConfigError, ModelError, for_field
from backend.export.formats import Layout, layout_of, read_layout
from backend.models.facts import ModelFacts, default_text
from backend.models.sources import hub
from backend.models.sources.catalogue import inspect, require_tokenizer
from backend.models.sources.spec import is_hub_id
from backend.plan import Plan
from backend.quantization.plan import QuantizationPlan
from backend.queue.service import PREDICTED_BYTES
from backend.store import queries
from jobs.fields.saved_models import first_model, is_run, planned_run, saved_config, saved_model
from jobs.kind import kind_named

ROUNDED = ("dequantised", "packed")  # how notes on weights that are rounded begin


@dataclass(frozen=True)
class ResolvedModel:
    """A model to work on: the spec or folder that is loaded, and its facts, weights unpacked.
    `plan`: of the run that has still to save it, where that has one."""

    source: str
    facts: ModelFacts
    plan: Plan | None = None

    @property
    def packed(self) -> bool:
        """Whether the folder holds packed weights; they decode in bfloat16 on the CPU."""
        return bool(self.facts.quantized)

    @property
    def layout(self) -> Layout | None:
        """How its weights are packed, now or when the run before has saved it; None: plain."""
        if isinstance(self.plan, QuantizationPlan):
            return layout_of(self.plan, self.plan.format)
        return read_layout(Path(self.source)) if self.packed else None


def resolve_model(spec: str, field: str = "model", reads: bool = True) -> ResolvedModel:
    """The model `spec` names, with a tokenizer if it `reads`. Raises ConfigError: the run does not
    exist, or has saved no model; ModelError: there is no such model, it is not supported, or it
    cannot read text."""
    source = spec
    planned = planned_run(spec, "model") if is_run(spec) else None
    if planned:  # what it will save has the shapes of what it began with
        kind, stored = kind_named(planned.kind), queries.plan(planned.id)
        plan = kind.plan.model_validate(stored) if kind.plan and stored else None
        dense = isinstance(plan, QuantizationPlan) and plan.format == "dense"
        packed = planned.kind if kind.packs and not dense else ""
        before = resolve_model(str(planned.config["model"]), field, reads)
        size = int(planned.environment.get(PREDICTED_BYTES) or 0)
        facts = replace(before.facts, title=spec, quantized=packed, bytes=size)
        return ResolvedModel(before.source, facts, None if dense else plan)
    if is_run(spec):
        source = saved_model(spec, field)[0]
        saved_config(Path(source), spec, field)
        first = first_model(spec)
        facts, text = inspect(source), default_text(first)
        note = "; ".join(filter(None, (facts.note, source_note(first))))
        facts = replace(facts, title=spec, default_text=text, note=note)
    else:
        facts = inspect(spec)
    if reads:
        require_tokenizer(source, facts.vocabulary)
    return ResolvedModel(source, facts)


def source_note(first: str) -> str:
    """What is known of the weights that a chain of runs began with, as far as they are here."""
    facts = _facts_here(first)
    return f"{first} was {facts.note}" if facts and facts.note.startswith(ROUNDED) else ""


def parameters_of(model: str) -> int:
    """Of the model that a chain of runs began with; 0 where it is not here."""
    facts = _facts_here(first_model(model))
    return facts.parameters if facts else 0


def _facts_here(spec: str) -> ModelFacts | None:
    """Without asking the hub."""
    try:
        return inspect(spec) if not is_hub_id(spec) or hub.cached(spec) else None
    except ModelError:
        return None


def decodable_model(spec: str, precision: str, field: str = "model") -> ResolvedModel:
    """The model `spec` names, which the decoding loop can run in this precision."""
    base = resolve_model(spec, field)
    with for_field(field, ModelError):
        base.facts.require_decodable()
    if base.packed and precision == "float32":
        raise ConfigError(
            "Packed weights do not support float32.",
            "Their kernel computes in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )
    return base
