"""Drafters, named after the runs that trained them, and the models and drafters of a side-by-side
comparison."""

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
from jobs.fields.models import (
    has_saved,
    is_run,
    load_saved_config,
    missing_weights_error,
    planned_run,
)
from jobs.fields.types import absolute

DRAFTER_KIND, DRAFTER_FOLDER = "amphista", "drafter"
MAX_SIDES = 4


def drafter_run(name: str, field: str, planned: bool = False) -> Job:
    """Return the run that trained a drafter. With `planned`, queued and running ones count, too.
    Raises `ConfigError` if there is no such run or it has not finished."""
    advice = "Choose a finished run of the kind amphista."
    try:
        job = queries.job(name)
    except NotFoundError as error:
        raise ConfigError(error.what, error.why, advice, field) from error
    if planned and planned_run(job.run, DRAFTER_FOLDER):
        return job
    if job.kind != DRAFTER_KIND or job.state != State.SUCCEEDED:
        raise ConfigError(
            f"{job.run} has no drafter.",
            f"It is a run of the kind {job.kind}, {job.state}.",
            advice,
            field,
        )
    return job


def drafter_folder(job: Job) -> Path:
    return present(run_folder(job.run) / DRAFTER_FOLDER)


def drafter_config(job: Job, field: str = "drafters") -> dict[str, Any]:
    """Load the config saved with the drafter: shape, base model, tree. Raises `ConfigError` if it
    is missing or damaged."""
    return load_saved_config(drafter_folder(job), job.run, field)


def drafter_bytes(job: Job, field: str = "drafters") -> int:
    """Return the size of the drafter's weights, 0 before they are saved. Raises `ConfigError` if
    they are missing."""
    if job.state != State.SUCCEEDED:
        return 0
    file = drafter_folder(job) / "drafter.safetensors"
    if not file.is_file():
        raise missing_weights_error(job.run, field)
    return file.stat().st_size


def gains_by_path(run: str) -> dict[tuple[int, ...], float]:
    """Return the gain in accepted length on held-out answers of each path in the draft tree; empty
    if unknown."""
    try:
        growth = drafter_config(queries.job(run))["growth"]
    except (SlimscopeError, KeyError):
        return {}
    return {tuple(path): value for path, value in growth}


def parse_drafters(text: str, model: str, field: str) -> list[Job]:
    """Return the drafter runs in a comma-separated list, without duplicates. Raises `ConfigError`
    if one was not trained for `model`."""
    names = dict.fromkeys(read_names(text))
    drafters = {job.run: job for job in (drafter_run(name, field, planned=True) for name in names)}
    for job in drafters.values():
        if job.config["model"] != model:
            raise ConfigError(
                f"{job.run} cannot draft for {model}.",
                f"It was trained for {job.config['model']}.",
                "Choose its base model, or another drafter.",
                field,
            )
    return [*drafters.values()]


def available_drafters() -> Sequence[Job]:
    """Return all runs with an available drafter, newest first."""
    jobs = queries.jobs([State.SUCCEEDED], DRAFTER_KIND)
    return [job for job in jobs if not job.damaged and has_saved(job, DRAFTER_FOLDER)]


@dataclass(frozen=True)
class GenerationSide:
    """One side of a comparison.

    Attributes:
        name: name as entered.
        model: spec of the base model.
        drafter: folder of the drafter, if any.
    """

    name: str
    model: str
    drafter: Path | None = None


def parse_sides(text: str) -> list[GenerationSide]:
    """Parse a comma-separated list of models and drafters. Raises `ConfigError` for an empty or too
    long list, or for a run without a model or drafter."""
    names = read_names(text)
    if not 1 <= len(names) <= MAX_SIDES:
        raise ConfigError(
            f"{len(names)} models are selected.",
            f"1 to {MAX_SIDES} can be compared.",
            "Separate their names with commas.",
            "sides",
        )
    return [parse_side(name) for name in names]


def parse_side(name: str) -> GenerationSide:
    if is_run(name) and name.startswith(f"{DRAFTER_KIND}-"):
        job = drafter_run(name, "sides")
        return GenerationSide(job.run, str(job.config["model"]), drafter_folder(job))
    return GenerationSide(name, absolute(name))
