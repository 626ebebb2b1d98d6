"""The config of a search for a mix of formats."""

from pydantic import field_validator

from backend.budget import Budget
from backend.options import option
from jobs.fields.model import ModelConfig
from jobs.fields.text import TextConfig
from jobs.kind import JobConfig

NAME = "search"
DENSE, SOLVER, FOUND = "dense", "solver", "search"
LABELS = {DENSE: "Dense", SOLVER: "Solver's mix", FOUND: "Mix found"}


class SearchJob(ModelConfig, TextConfig, JobConfig):
    """Which model, its budget, and how long to search."""

    budget: str = option("3.25bits", "Budget", max_length=60, examples=["3.25bits", "80MB", "50%"])
    """80MB (of the file), 3.25bits (a weight, scales included), 50% (zeros) or 6.5ms (a token)."""
    minutes: float = option(5.0, "Search time", gt=0, le=1440, unit="minutes")
    """After the candidates are made."""
    offspring: int = option(8, "Offspring", ge=2, le=256, advanced=True)
    """Mixes tried in each generation."""

    @field_validator("budget")
    @classmethod
    def _budget_read(cls, text: str) -> str:
        return str(Budget.parse(text))
