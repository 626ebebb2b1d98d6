"""What a kind knows of the rows of an imported run: its config, its plan, and the notes of its
figures."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from backend.backup.run_rows import (
    Count,
    DecoderReportRow,
    JobRow,
    Number,
    ResultRow,
    Sha256,
    StoredRow,
    Text,
)
from backend.metric_key import MetricKey
from backend.options import Plan
from backend.store.states import Lane
from jobs.benchmark.report import DecoderReport
from jobs.evaluation.kind import SAMPLED
from jobs.kind import JobConfig, kind_named
from jobs.submit import validated


class Sample(BaseModel):
    """A text that a model wrote."""

    model_config = ConfigDict(strict=True)
    prompt: Text
    text: Text
    tokens: list[Count]


NOTES: dict[str, Any] = {  # of a figure, that pages read; others are only shown
    "corpus": (Text, ""),
    "sha256": (Sha256, ""),
    "seed": (Count, 0),
    "context": (Count, 0),
    "windows": (Count, 0),
    "preprocessing": (Text, ""),
    "lowest": (Number, 0.0),
    "highest": (Number, 0.0),
    "tokens": (Count, 0),
    "prompt": (Count, 0),
    "nodes": (Count, 0),
    "decoder": (Text, ""),
    "dtype": (Text, ""),
    "rounded": (Text, ""),
    "arm": (Text, ""),
    "side": (Text, ""),
    "end": (Text, ""),
    "task": (Text, ""),
    "figure": (Text, ""),
    "of": (Text, ""),
    "samples": (Annotated[list[Sample], Field(max_length=1000)], []),
}
DETAILS = create_model("ResultDetails", __config__=ConfigDict(strict=True), **NOTES)


def check_row(kind: str, row: StoredRow) -> None:
    """Check a row of an imported run, and complete its config and plan. Raises ConfigError: there
    is no such kind, or it refuses the config; ValueError: the plan is not that of the config, or a
    figure is none that pages can show."""
    match row:
        case JobRow():
            config = validated(kind, row.config)
            row.config = config.model_dump(mode="json")
            row.plan = checked_plan(kind_named(kind).plan, config, row.plan)
            row.lane = Lane.SLOTS
        case ResultRow():
            DETAILS.model_validate(row.details)
            if MetricKey(row.family, series=row.series) == SAMPLED and "samples" not in row.details:
                raise ValueError(f"{SAMPLED} comes without samples")
        case DecoderReportRow():
            DecoderReport.from_record(row.report)


def checked_plan(
    expected: type[Plan] | None, config: JobConfig, stored: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The plan of a run in the form in which its kind stores it. Raises ValueError: it is missing,
    not of this kind, or another one than that of the config."""
    if expected is None:
        if stored is not None:
            raise ValueError("runs of this kind have no plan")
        return None
    if stored is None:
        raise ValueError("the plan is missing")
    plan = expected.model_validate(stored)
    plan.check(config)
    return plan.model_dump(mode="json")
