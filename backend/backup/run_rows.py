"""The rows of one run as lines of JSON. A run file comes from somewhere else: the types, ranges and
lengths of what it may hold are written here. Columns not named here (owner, what it waits for, its
process) are not taken over. `Check` checks what the kind of a run adds."""

import math
import struct
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    model_validator,
)

from backend.live.address import QueuedState
from backend.printable import one_line, printable
from backend.queue.labels import MOST_TAGS, NOTE_LETTERS, RUN_NAME_LETTERS, TAG
from backend.statistics.tensors import BASE_STATISTICS, BINS, QUANTILES
from backend.store.tables import KIND_NAME

LARGEST_PROFILE = 2**26  # bytes, unpacked
NOT_TAKEN_OVER = ("settings", "variables", "host", "work")  # of the environment: of this machine


def _name(value: str) -> str:
    if one_line(value) != value:
        raise ValueError("has control characters or outer spaces")
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_name)]
Part = Annotated[str, StringConstraints(max_length=200), AfterValidator(_name)]  # empty: none
Family = Annotated[str, StringConstraints(pattern=r"^[^/]{1,80}$"), AfterValidator(_name)]
Note = Annotated[str, StringConstraints(max_length=20_000), AfterValidator(printable)]
Text = Annotated[str, StringConstraints(max_length=200_000), AfterValidator(printable)]
Moment = Annotated[int, Field(ge=0, lt=2**43)]  # ms since 1970: until 2248
Count = Annotated[int, Field(ge=0, lt=2**53)]
Small = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Scalar = Annotated[Text | bool | Whole | Number | None, Field(union_mode="left_to_right")]
Scalars = Annotated[list[Scalar], Field(max_length=50_000)]
Fact = Scalar | Scalars | dict[Name, Scalar] | list[dict[Name, Scalar | Scalars]]
Facts = Annotated[dict[Name, Fact], Field(max_length=200)]


class Checked(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )


class StoredRow(Checked):
    """A row of a table."""

    table: str

    def columns(self) -> dict[str, Any]:
        return self.model_dump(exclude={"table"}, exclude_unset=True)


class TextFacts(Checked):
    """What is known of a text that a run has used."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Scalar]
    corpus: Note = ""
    sha256: Sha256 = ""


class Environment(Checked):
    """Where a run took place: a text to show, never the environment of a process."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Scalar]
    device: Note = "cpu"
    cpu: Note = ""
    threads: Small = 0
    estimated_seconds: Duration | None = None
    estimated_bytes: Count | None = None
    kept_reason: Note = ""
    versions: dict[Name, Note] = {}
    text: dict[Name, TextFacts] = {}
    warnings: Annotated[list[Note], Field(max_length=1000)] = []
    workbench: QueuedState | None = None


class Failure(Checked):
    """What a run failed of."""

    what: Note = ""
    why: Note = ""
    do: Note = ""


def _known_environment(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in NOT_TAKEN_OVER}


class JobRow(StoredRow):
    table: Literal["jobs"] = "jobs"
    id: Annotated[int, Field(gt=-(2**53), lt=2**53)]
    kind: Annotated[str, StringConstraints(pattern=rf"^{KIND_NAME.pattern}$")]
    name: Annotated[str, StringConstraints(max_length=RUN_NAME_LETTERS), AfterValidator(one_line)]
    config: Annotated[dict[Name, Fact], Field(max_length=500)]
    plan: Facts | None = None
    environment: Annotated[Environment, BeforeValidator(_known_environment)]
    state: Literal["succeeded", "failed", "cancelled", "lost"]
    attempts_made: Annotated[int, Field(ge=0, lt=100_000)]
    created_at: Moment
    queued_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    done: Duration
    total: Duration
    stage: Note
    peak_bytes: Count | None
    error: Failure | None
    kept_stage: Name | None
    flops: Annotated[float, Field(ge=0, lt=1e30)] | None
    timed_seconds: Duration | None
    tags: Annotated[
        list[Annotated[str, StringConstraints(pattern=rf"^{TAG.pattern}$")]],
        Field(max_length=MOST_TAGS),
    ]
    note: Annotated[str, StringConstraints(max_length=NOTE_LETTERS), AfterValidator(printable)]
    lane: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,20}$")]  # set by its kind


class AttemptRow(StoredRow):
    table: Literal["attempts"] = "attempts"
    n: Annotated[int, Field(ge=1, lt=100_000)]
    engine: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,40}$")]
    launched_at: Moment
    started_at: Moment | None
    beat_at: Moment | None
    ended_at: Moment | None
    exit_code: Annotated[int, Field(gt=-1000, lt=1000)] | None
    outcome: Name | None
    resumed_from: Note | None


class EventRow(StoredRow):
    table: Literal["job_events"] = "job_events"
    at: Moment
    type: Name
    actor: Name
    text: Note


class MetricPointRow(StoredRow):
    table: Literal["metric_points"] = "metric_points"
    family: Family
    stage: Part
    series: Part
    axis: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]
    step: Annotated[int, Field(ge=0, lt=2**53)]
    at: Moment
    value: Number


class ResultRow(StoredRow):
    table: Literal["results"] = "results"
    stage: Name
    family: Family
    series: Part
    value: Number
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    n: Count | None
    details: Facts


class StepTimeRow(StoredRow):
    table: Literal["step_times"] = "step_times"
    step: Name
    seconds: Duration


class DecoderReportRow(StoredRow):
    table: Literal["decoder_reports"] = "decoder_reports"
    decoder: Name
    report: dict[Name, Scalar | dict[Name, Scalar | Annotated[list[Number], Field(max_length=2)]]]


class TensorSnapshotRow(StoredRow):
    table: Literal["tensor_snapshots"] = "tensor_snapshots"
    tensor: Name
    stage: Name
    step: Small
    block: Annotated[int, Field(ge=-1, lt=100_000)]
    module: Name
    n: Annotated[int, Field(ge=1, lt=2**53)]
    zeros: Count
    below: Count
    above: Count
    lo: Number
    hi: Number
    counts: bytes
    stats: Annotated[dict[Name, Number | None], Field(max_length=200)]
    quantiles: Annotated[
        list[Number | None], Field(min_length=len(QUANTILES), max_length=len(QUANTILES))
    ]

    @model_validator(mode="after")
    def _sound(self) -> "TensorSnapshotRow":
        if not self.lo < self.hi:
            raise ValueError("the histogram has no width")
        if missing := BASE_STATISTICS - self.stats.keys():
            raise ValueError(f"the statistic {min(missing)} is missing")
        return self


class TensorProfileRow(StoredRow):
    table: Literal["tensor_profiles"] = "tensor_profiles"
    tensor: Part  # empty where the profile is of the whole model
    stage: Name
    step: Small
    name: Name
    block: Annotated[int, Field(ge=-1, lt=100_000)]
    module: Part
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=3)]
    values: bytes

    @model_validator(mode="after")
    def _sound(self) -> "TensorProfileRow":
        if 4 * math.prod(self.shape) > LARGEST_PROFILE:
            raise ValueError("the profile is too large")
        return self


class ArtifactRow(StoredRow):
    table: Literal["artifacts"] = "artifacts"
    kind: Name
    path: Annotated[str, StringConstraints(max_length=1000), AfterValidator(_name)]
    bytes: Count
    sha256: Sha256
    created_at: Moment


AnyRow = Annotated[
    JobRow
    | AttemptRow
    | EventRow
    | MetricPointRow
    | ResultRow
    | StepTimeRow
    | DecoderReportRow
    | TensorSnapshotRow
    | TensorProfileRow
    | ArtifactRow,
    Field(discriminator="table"),
]
LINE: TypeAdapter[StoredRow] = TypeAdapter(AnyRow)
MODELS: dict[str, type[StoredRow]] = {
    model.model_fields["table"].default: model for model in StoredRow.__subclasses__()
}

Check = Callable[[str, StoredRow], None]
"""Raises an error for a row that runs of this kind do not store; called with the kind and each row,
the run itself first, whose config it may complete."""


def line_of(table: str, columns: dict[str, Any]) -> bytes:
    """The line of a row; `ValidationError` if an import would refuse it."""
    model = MODELS[table]
    named = model.model_fields.keys() - {"table"}
    row = model.model_validate({"table": table} | {name: columns[name] for name in named})
    return row.model_dump_json(exclude_unset=True).encode() + b"\n"


def unpacked_bytes(row: StoredRow) -> int:
    """The bytes the packed part of a row unpacks to, which its other columns say; `ValueError` if
    it is none, or unpacks to more or less."""
    match row:
        case TensorSnapshotRow():
            packed, size = row.counts, 4 * BINS
        case TensorProfileRow():
            packed, size = row.values, 4 * math.prod(row.shape)
        case _:
            return 0
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise ValueError("a histogram cannot be unpacked") from error
    if len(data) != size or not unpacker.eof:
        raise ValueError("a histogram cannot be unpacked to its size")
    if isinstance(row, TensorSnapshotRow):
        counted = sum(struct.unpack(f"<{BINS}I", data)) + row.zeros + row.below + row.above
        if counted != row.n:
            raise ValueError("the counts of a histogram are not those of its weights")
    return size
