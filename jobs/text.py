"""The texts a job reads: fields shared by every kind that calibrates and evaluates."""

from __future__ import annotations

from pydantic import BaseModel, Field


class TextConfig(BaseModel):
    """Calibration and evaluation text. The two never share a passage."""

    calibration_text: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Calibration text",
        description="auto: the corpus that suits the model. self: sampled from the dense model.",
    )
    segments: int = Field(
        32,
        ge=1,
        le=4096,
        title="Calibration segments",
        description="Random windows of the calibration text.",
        json_schema_extra={"unit": "segments"},
    )
    context: int = Field(
        512,
        ge=16,
        le=131072,
        title="Context length",
        description="Of each calibration segment and each evaluation window.",
        json_schema_extra={"unit": "tokens"},
    )
    evaluation_text: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        title="Evaluation text",
        description="Perplexity of every stage is measured on it.",
    )
    windows: int = Field(
        16,
        ge=1,
        le=4096,
        title="Evaluation windows",
        description="Consecutive windows that do not overlap.",
        json_schema_extra={"unit": "windows"},
    )
