"""The model a job works on: one of the catalog, or one that a run has saved, by the name of the
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
from jobs.kind import kind_named

NO_WEIGHTS = "Examples ship without weights."
ROUNDED = ("dequantized", "packed")  # how notes on weights that are rounded begin


def is_run(spec: str) -> bool:
    """Whether `spec` has the form of a run's name, such as sds-0042."""
    return RUN_NAME.fullmatch(spec) is not None


def has_saved(job: Job, what: str) -> bool:
    """Whether the "model" or the "drafter" that a run saved can be read, here or in the store."""
    if (run_folder(job.run) / what / "config.json").is_file():
        return True
    stored = queries.artifacts(job.run) if settings().artifact_store else []
    return any(each.kind == what for each in stored)


def ships_without(job: Job) -> bool:
    """Whether it is an example of a kind that saves weights."""
    return job.id < 0 and bool(kind_named(job.kind).saves)


def saved_model(run: str, field: str = "model") -> tuple[str, str]:
    """The folder a run saved its model in, and the spec of the model it began with. Raises
    ConfigError: the run does not exist, or has saved no model, or came without it."""
    try:
        job = queries.job(run)
        saved = [a.path for a in queries.artifacts(run) if a.kind == "model"]
    except NotFoundError as error:
        raise ConfigError(
            error.what, error.why, "Choose a run that saved a model.", field
        ) from error
    if not saved and job.state == State.SUCCEEDED and kind_named(job.kind).saves == "model":
        raise without_weights(job.run, field)
    if not saved:
        raise ConfigError(
            f"{run} has saved no model.",
            f"It is {job.state}.",
            "Choose a run that succeeded, or wait for it.",
            field,
        )
    return str(present(settings().artifacts / saved[-1])), str(job.config.get("model", ""))


def planned_run(run: str, *saves: str) -> Job | None:
    """The run, if it is queued or running and will save a "model" or "drafter" of `saves`."""
    try:
        job = queries.job(run)
    except NotFoundError:
        return None
    return job if job.state in ACTIVE and kind_named(job.kind).saves in saves else None


def model_before(run: str) -> str:
    """The spec of the model a run began with; ConfigError as for `saved_model`."""
    planned = planned_run(run, "model")
    return str(planned.config["model"]) if planned else saved_model(run)[1]


def first_model(spec: str) -> str:
    """The model all began with, through runs whose files may be gone. A run that was imported alone
    names runs of where it comes from: unknown here, or bearing its own name."""
    seen = set[str]()
    while is_run(spec) and spec not in seen:
        seen.add(spec)
        try:
            spec = str(queries.job(spec).config["model"])
        except (NotFoundError, KeyError):
            break
    return spec


def needed_runs(config: Mapping[str, Any]) -> list[int]:
    """Ids of the runs named in a config that have still to save what it works on."""
    # the fields that name runs to work on
    texts = (str(config.get(field) or "") for field in ("model", "dense", "drafters"))
    names = dict.fromkeys(name for text in texts for name in read_names(text) if is_run(name))
    planned = (planned_run(name, "model", "drafter") for name in names)
    return [job.id for job in planned if job]


def saved_config(folder: Path, run: str, field: str) -> dict[str, Any]:
    """The config.json in a folder that a run has saved; ConfigError for damaged files."""
    if not folder.exists():
        raise without_weights(run, field)
    try:
        config: dict[str, Any] = dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(run, f"{folder.name}/config.json cannot be read: {error}.", field) from error
    if name := changed_file(folder, contents=False):
        raise _damaged(run, f"{folder.name}/{name} has changed since it was saved.", field)
    return config


def without_weights(run: str, field: str) -> ConfigError:
    return ConfigError(
        f"The weights of {run} are not here.",
        NO_WEIGHTS
        if (f"-{EXAMPLE}" in run)
        else "It was imported without them, or they were deleted.",
        f"Choose another model, or reproduce {run}.",
        field,
    )


def _damaged(run: str, why: str, field: str) -> ConfigError:
    return ConfigError(
        f"The files of {run} are damaged.", why, f"Restore the file, or run {run} again.", field
    )


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
        note, began = facts.note, _facts_here(first)  # with which a chain of runs began
        if began and began.note.startswith(ROUNDED):
            note = "; ".join(filter(None, (note, f"{first} was {began.note}")))
        facts = replace(facts, title=spec, default_text=text, note=note)
    else:
        facts = inspect(spec)
    if reads:
        require_loadable(source, facts.vocabulary)
    return ResolvedModel(source, facts)


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
            "They are decoded in bfloat16.",
            "Choose bfloat16 or auto.",
            "precision",
        )
    return base
