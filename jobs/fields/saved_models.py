"""Models that runs have saved, by the names of the runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.checkpoints import changed_file
from backend.errors import ConfigError, NotFoundError
from backend.models.layer_names import read_names
from backend.queue.artifacts.copies import present
from backend.queue.folders import run_folder
from backend.settings import settings
from backend.store import queries
from backend.store.states import ACTIVE, State
from backend.store.tables import EXAMPLE, RUN_NAME, Job
from jobs.kind import kind_named

NO_WEIGHTS = "Examples ship without weights."
NAMING = ("model", "dense", "drafters")  # the fields that name runs to work on


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
            f"{run} has saved no model.", f"It is {job.state}.",
            "Choose a run that succeeded, or wait for it.", field,
        )  # fmt: skip
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
    texts = (str(config.get(field) or "") for field in NAMING)
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
        why = f"{folder.name}/config.json cannot be read: {error}."
        raise _damaged(run, why, field) from error
    if name := changed_file(folder, contents=False):
        raise _damaged(run, f"{folder.name}/{name} has changed since it was saved.", field)
    return config


def without_weights(run: str, field: str) -> ConfigError:
    example = f"-{EXAMPLE}" in run
    why = NO_WEIGHTS if example else "It was imported without them, or they were deleted."
    do = f"Choose another model, or reproduce {run}."
    return ConfigError(f"The weights of {run} are not here.", why, do, field)


def _damaged(run: str, why: str, field: str) -> ConfigError:
    return ConfigError(
        f"The files of {run} are damaged.", why, f"Restore the file, or run {run} again.", field
    )
