"""The config of a search for a mix of formats."""

from __future__ import annotations

from pydantic import Field, field_validator

from backend.budget import Budget
from jobs.fields.model import ModelConfig
from jobs.fields.text import TextConfig
from jobs.kind import JobConfig

NAME = "search"
DENSE, SOLVER, FOUND = "dense", "solver", "search"
LABELS = {DENSE: "Dense", SOLVER: "Solver's mix", FOUND: "Mix found"}


class SearchJob(ModelConfig, TextConfig, JobConfig):
    """Which model, its budget, and how long to search."""

    budget: str = Field(
        "3.25bits", max_length=60, title="Budget",
        description="80MB (of the file), 3.25bits (a weight, scales included) or 50% (zeros).",
        examples=["3.25bits", "80MB", "50%"],
    )  # fmt: skip
    minutes: float = Field(
        5.0, gt=0, le=1440, title="Search time",
        description="After the candidates are made.", json_schema_extra={"unit": "minutes"},
    )  # fmt: skip
    offspring: int = Field(
        8, ge=2, le=256, title="Offspring", description="Mixes tried in each generation.",
        json_schema_extra={"advanced": True},
    )  # fmt: skip

    @field_validator("budget")
    @classmethod
    def _budget_read(cls, text: str) -> str:
        return str(Budget.parse(text))
