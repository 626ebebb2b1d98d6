"""The models and drafters that answer side by side, by their names."""

from dataclasses import dataclass
from pathlib import Path

from backend.errors import ConfigError
from backend.models.layer_names import read_names
from jobs.fields.drafters import DRAFTER_KIND, drafter_folder, drafter_run
from jobs.fields.model import absolute
from jobs.fields.saved_models import is_run

MAX_SIDES = 4


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
            f"{len(names)} models are selected.", f"1 to {MAX_SIDES} can be compared.",
            "Separate them by commas.", "sides",
        )  # fmt: skip
    return [read_side(name) for name in names]


def read_side(name: str) -> GenerationSide:
    if is_run(name) and name.startswith(f"{DRAFTER_KIND}-"):
        job = drafter_run(name, "sides")
        return GenerationSide(job.run, str(job.config["model"]), drafter_folder(job))
    return GenerationSide(name, absolute(name))
