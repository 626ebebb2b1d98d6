"""The model a job works on: a catalog model, or the saved model of a run, by the name of the
run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.checkpoints import changed_file
from backend.errors import ConfigError, ModelError, NotFoundError, for_field
from backend.export.formats import Layout, layout_of, read_layout
from backend.models.facts import ModelFacts, default_text
from backend.models.layer_names import read_names
from backend.models.sources import hub
from backend.models.sources.catalog import inspect, require_loadable
from backend.models.sources.spec import is_hub_id
from backend.options import Plan
from backend.quantization.plan import QuantizationPlan
from backend.queue.artifacts import present, run_folder
from backend.queue.service import PREDICTED_BYTES
from backend.settings import settings
from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import EXAMPLE, RUN_NAME, Job
from jobs.kind import get_kind

NO_WEIGHTS = "Examples ship without weights."
ROUNDED = (
    "restored",
    "dequantized",
    "packed",
)  # prefixes of notes on models whose weights are rounded


def is_run(spec: str) -> bool:
    """Return True if `spec` looks like the name of a run, such as sds-0042."""
    return RUN_NAME.fullmatch(spec) is not None


def has_saved(job: Job, artifact: str) -> bool:
    """Return True if the artifact ("model" or "drafter") of a run is available, on this machine or
    in the artifact store."""
    if (run_folder(job.run) / artifact / "config.json").is_file():
        return True
    artifacts = queries.artifacts(job.run) if settings().artifact_store else []
    return any(entry.kind == artifact for entry in artifacts)


def lacks_weights(job: Job) -> bool:
    """Return True for example runs of a kind that saves weights: they come without them."""
    return job.id < 0 and bool(get_kind(job.kind).saves)


def saved_model(run: str, field: str = "model") -> tuple[str, str]:
    """Return the folder of a run's saved model, and the spec of its source model. Raises
    `ConfigError` if the run does not exist, has saved no model, or was imported without it."""
    try:
        job = queries.job(run)
        saved = [artifact.path for artifact in queries.artifacts(run) if artifact.kind == "model"]
    except NotFoundError as error:
        raise ConfigError(
            error.what, error.why, "Choose a run that saved a model.", field
        ) from error
    if not saved and job.state == State.SUCCEEDED and get_kind(job.kind).saves == "model":
        raise missing_weights_error(job.run, field)
    if not saved:
        raise ConfigError(
            f"{run} has not saved a model.",
            f"Its state is {job.state}.",
            "Choose a run that succeeded, or wait for it.",
            field,
        )
    return str(present(settings().artifacts / saved[-1])), str(job.config.get("model", ""))


def planned_run(run: str, *saves: str) -> Job | None:
    """Return the run if it is queued or running and will save one of the artifacts `saves` ("model"
    or "drafter"); None otherwise."""
    try:
        job = queries.job(run)
    except NotFoundError:
        return None
    return job if job.state in ACTIVE and get_kind(job.kind).saves in saves else None


def source_model(run: str) -> str:
    """Return the spec of a run's source model. Raises `ConfigError` as `saved_model` does."""
    planned = planned_run(run, "model")
    return str(planned.config["model"]) if planned else saved_model(run)[1]


def original_model(spec: str) -> str:
    """Follow a chain of runs back to the original model, even if files of the runs are missing.

    An imported run may name a source run that is unknown here or has the same name as itself.
    """
    visited = set[str]()
    while is_run(spec) and spec not in visited:
        visited.add(spec)
        try:
            spec = str(queries.job(spec).config["model"])
        except (NotFoundError, KeyError):
            break
    return spec


def needed_runs(config: Mapping[str, Any]) -> list[int]:
    """Return the ids of runs named in a config whose model or drafter is not saved yet."""
    texts = (str(config.get(field) or "") for field in ("model", "dense", "drafters"))
    names = dict.fromkeys(name for text in texts for name in read_names(text) if is_run(name))
    planned = (planned_run(name, "model", "drafter") for name in names)
    return [job.id for job in planned if job]


def load_saved_config(folder: Path, run: str, field: str) -> dict[str, Any]:
    """Load config.json from a folder saved by a run. Raises `ConfigError` for damaged files."""
    if not folder.exists():
        raise missing_weights_error(run, field)
    try:
        config: dict[str, Any] = dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(run, f"{folder.name}/config.json cannot be read: {error}.", field) from error
    if name := changed_file(folder, contents=False):
        raise _damaged(run, f"{folder.name}/{name} has changed since it was saved.", field)
    return config


def missing_weights_error(run: str, field: str) -> ConfigError:
    """Return the error for a run whose weights are not on this machine."""
    return ConfigError(
        f"The weights of {run} are missing.",
        NO_WEIGHTS
        if (f"-{EXAMPLE}" in run)
        else "The run was imported without weights, or they were deleted.",
        f"Choose another model, or reproduce {run}.",
        field,
    )


def _damaged(run: str, why: str, field: str) -> ConfigError:
    return ConfigError(
        f"The files of {run} are damaged.", why, f"Restore the file, or run {run} again.", field
    )


@dataclass(frozen=True)
class ResolvedModel:
    """A model to work on.

    Attributes:
        source: spec or folder to load.
        facts: facts of the model with unpacked weights.
        plan: plan of the run that will save the model, if any.
    """

    source: str
    facts: ModelFacts
    plan: Plan | None = None

    @property
    def packed(self) -> bool:
        """True if the weights are packed; they decode in bfloat16 on the CPU."""
        return bool(self.facts.quantized)

    @property
    def layout(self) -> Layout | None:
        """Layout of packed weights, for a planned run as it will be saved; None if unpacked."""
        if isinstance(self.plan, QuantizationPlan):
            return layout_of(self.plan, self.plan.format)
        return read_layout(Path(self.source)) if self.packed else None


def resolve_model(spec: str, field: str = "model", reads: bool = True) -> ResolvedModel:
    """Find the model of a spec and check its tokenizer.

    Args:
        spec: name of a model or run, a Hugging Face id, or a path.
        field: config field that errors refer to.
        reads: True if the job reads text, so that a tokenizer is required.

    Raises:
        ConfigError: the run does not exist or has not saved a model.
        ModelError: the model does not exist, is not supported, or has no tokenizer.
    """
    source = spec
    planned = planned_run(spec, "model") if is_run(spec) else None
    if planned:  # the saved model will have the shapes of its source model
        kind, stored_plan = get_kind(planned.kind), queries.plan(planned.id)
        plan = kind.plan.model_validate(stored_plan) if kind.plan and stored_plan else None
        dense = isinstance(plan, QuantizationPlan) and plan.format == "dense"
        packed = planned.kind if kind.saves_packed and not dense else ""
        base_model = resolve_model(str(planned.config["model"]), field, reads)
        size = int(planned.environment.get(PREDICTED_BYTES) or 0)
        facts = replace(base_model.facts, title=spec, quantized=packed, bytes=size)
        return ResolvedModel(base_model.source, facts, None if dense else plan)
    if is_run(spec):
        source = saved_model(spec, field)[0]
        load_saved_config(Path(source), spec, field)
        first = original_model(spec)
        facts, text = inspect(source), default_text(first)
        note, first_facts = facts.note, _facts_here(first)
        if first_facts and first_facts.note.startswith(ROUNDED):
            note = "; ".join(filter(None, (note, f"{first} was {first_facts.note}")))
        facts = replace(facts, title=spec, default_text=text, note=note)
    else:
        facts = inspect(spec)
    if reads:
        require_loadable(source, facts.vocabulary)
    return ResolvedModel(source, facts)


def parameters_of(model: str) -> int:
    """Return the number of parameters of the original model of a chain of runs; 0 if it is not on
    this machine."""
    facts = _facts_here(original_model(model))
    return facts.parameters if facts else 0


def _facts_here(spec: str) -> ModelFacts | None:
    """Return the facts of a model on this machine, without contacting the Hub."""
    try:
        return inspect(spec) if not is_hub_id(spec) or hub.cached(spec) else None
    except ModelError:
        return None


def decodable_model(spec: str, precision: str, field: str = "model") -> ResolvedModel:
    """Return the model of a spec. Raises an error if the decoding loop cannot run it in this
    precision."""
    model = resolve_model(spec, field)
    with for_field(field, ModelError):
        model.facts.require_decodable()
    if model.packed and precision == "float32":
        raise ConfigError(
            "Packed weights do not support float32.",
            "They are decoded in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )
    return model
