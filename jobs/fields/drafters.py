"""Drafters by the names of the runs that trained them, and the models and drafters that answer side
by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.models.layer_names import read_names
from backend.queue.artifacts import present, run_folder
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.fields.models import has_saved, is_run, planned_run, saved_config, without_weights
from jobs.fields.types import absolute

DRAFTER_KIND, DRAFTER_FOLDER = "amphista", "drafter"
MAX_SIDES = 4


def drafter_run(name: str, field: str, planned: bool = False) -> Job:
    """The run `name` that trained a drafter, finished or, with `planned`, queued or running. Raises
    ConfigError: there is none, or it has not finished."""
    do = "Choose a finished run of the kind amphista."
    try:
        job = queries.job(name)
    except NotFoundError as error:
        raise ConfigError(error.what, error.why, do, field) from error
    if planned and planned_run(job.run, DRAFTER_FOLDER):
        return job
    if job.kind != DRAFTER_KIND or job.state != State.SUCCEEDED:
        raise ConfigError(
            f"{job.run} holds no drafter.",
            f"{job.run} is a run of the kind {job.kind}, {job.state}.",
            do,
            field,
        )
    return job


def drafter_folder(job: Job) -> Path:
    return present(run_folder(job.run) / DRAFTER_FOLDER)


def drafter_config(job: Job, field: str = "drafters") -> dict[str, Any]:
    """The drafter's own config: its shape, its base, its tree; ConfigError if gone or damaged."""
    return saved_config(drafter_folder(job), job.run, field)


def drafter_bytes(job: Job, field: str = "drafters") -> int:
    """Size of the drafter's weights, 0 as long as they have not been saved; ConfigError if gone."""
    if job.state != State.SUCCEEDED:
        return 0
    file = drafter_folder(job) / "drafter.safetensors"
    if not file.is_file():
        raise without_weights(job.run, field)
    return file.stat().st_size


def expected_hits(run: str) -> dict[tuple[int, ...], float]:
    """Path of a guess -> what it adds to the accepted length on held-out answers, if known."""
    try:
        growth = drafter_config(queries.job(run))["growth"]
    except (SlimscopeError, KeyError):
        return {}
    return {tuple(path): value for path, value in growth}


def drafters_named(text: str, model: str, field: str) -> list[Job]:
    """The runs named in a list with commas, none twice; ConfigError unless all are for `model`."""
    names = dict.fromkeys(read_names(text))
    jobs = {job.run: job for job in (drafter_run(name, field, planned=True) for name in names)}
    for job in jobs.values():
        if job.config["model"] != model:
            raise ConfigError(
                f"{job.run} cannot draft for {model}.",
                f"It was trained for {job.config['model']}.",
                "Choose its base as the model, or another drafter.",
                field,
            )
    return [*jobs.values()]


def finished_drafters() -> Sequence[Job]:
    """Every run whose drafter is there, the newest first."""
    jobs = queries.jobs([State.SUCCEEDED], DRAFTER_KIND)
    return [job for job in jobs if not job.damaged and has_saved(job, DRAFTER_FOLDER)]


@dataclass(frozen=True)
class GenerationSide:
    """One of the models or drafters that are compared: its name as given, its base, its drafter."""

    name: str
    model: str
    drafter: Path | None = None


def read_sides(text: str) -> list[GenerationSide]:
    """The models and drafters of a list. Raises ConfigError: too many, none, or a run that holds
    neither model nor drafter."""
    names = read_names(text)
    if not 1 <= len(names) <= MAX_SIDES:
        raise ConfigError(
            f"{len(names)} models are selected.",
            f"1 to {MAX_SIDES} can be compared.",
            "Separate them by commas.",
            "sides",
        )
    return [read_side(name) for name in names]


def read_side(name: str) -> GenerationSide:
    if is_run(name) and name.startswith(f"{DRAFTER_KIND}-"):
        job = drafter_run(name, "sides")
        return GenerationSide(job.run, str(job.config["model"]), drafter_folder(job))
    return GenerationSide(name, absolute(name))
