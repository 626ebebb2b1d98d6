"""Rows of a run file: one JSON object per line for each database row of a run.

A run file may come from a stranger, so each row model limits the types, ranges and lengths of its
columns. Columns without a field here are neither exported nor imported: the owner, the runs it
waits for, its process. A `RowCheck` adds the checks of the job kind.
"""

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
from backend.sensitivity.profile import DecodingTimes
from backend.statistics.tensors import BASE_STATISTICS, BINS, QUANTILES
from backend.store.tables import KIND_NAME

MAX_PROFILE_BYTES = 2**26  # unpacked
# Fields of a run's environment that are valid only on the machine that recorded them.
MACHINE_FIELDS = ("settings", "variables", "host", "work")


def _single_line(value: str) -> str:
    if one_line(value) != value:
        raise ValueError("has control characters or outer spaces")
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_single_line)]
OptionalName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_single_line)]
Family = Annotated[str, StringConstraints(pattern=r"^[^/]{1,80}$"), AfterValidator(_single_line)]
ShortText = Annotated[str, StringConstraints(max_length=20_000), AfterValidator(printable)]
Text = Annotated[str, StringConstraints(max_length=200_000), AfterValidator(printable)]
TimestampMs = Annotated[int, Field(ge=0, lt=2**43)]  # since 1970, up to 2248
Count = Annotated[int, Field(ge=0, lt=2**53)]
SmallCount = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Scalar = Annotated[Text | bool | Int64 | Number | None, Field(union_mode="left_to_right")]
Scalars = Annotated[list[Scalar], Field(max_length=50_000)]
Record = dict[Name, Scalar | Scalars]
JsonValue = Scalar | Scalars | Record | list[Record]
JsonObject = Annotated[dict[Name, JsonValue], Field(max_length=200)]


class StrictModel(BaseModel):
    """Base of all models: no type coercion, no unknown fields, bytes as base64."""

    model_config = ConfigDict(
        extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64"
    )


class StoredRow(StrictModel):
    """Base of the row models. `table`: name of the database table."""

    table: str

    def columns(self) -> dict[str, Any]:
        """The column values that the file contains, by name."""
        return self.model_dump(exclude={"table"}, exclude_unset=True)


class TextSource(StrictModel):
    """Origin and checksum of a text that the run used."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Scalar]
    corpus: ShortText = ""
    sha256: Sha256 = ""


class Environment(StrictModel):
    """Machine and software of the run, for display only. Processes are never started with it."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Scalar]
    device: ShortText = "cpu"
    cpu: ShortText = ""
    threads: SmallCount = 0
    estimated_seconds: Duration | None = None
    estimated_bytes: Count | None = None
    kept_reason: ShortText = ""
    versions: dict[Name, ShortText] = {}
    text: dict[Name, TextSource] = {}
    warnings: Annotated[list[ShortText], Field(max_length=1000)] = []
    workbench: QueuedState | None = None
    decoding_times: DecodingTimes | None = None


class RunError(StrictModel):
    """Error message of a failed run."""

    what: ShortText = ""
    why: ShortText = ""
    do: ShortText = ""


def without_machine_fields(value: Any) -> Any:
    """A run's environment without the fields of the machine that recorded it."""
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in value.items() if name not in MACHINE_FIELDS}


class JobRow(StoredRow):
    """The run itself."""

    table: Literal["jobs"] = "jobs"
    id: Annotated[int, Field(gt=-(2**53), lt=2**53)]
    kind: Annotated[str, StringConstraints(pattern=rf"^{KIND_NAME.pattern}$")]
    name: Annotated[str, StringConstraints(max_length=RUN_NAME_LETTERS), AfterValidator(one_line)]
    config: Annotated[dict[Name, JsonValue], Field(max_length=500)]
    plan: JsonObject | None = None
    environment: Annotated[Environment, BeforeValidator(without_machine_fields)]
    state: Literal["succeeded", "failed", "cancelled", "lost"]
    attempts_made: Annotated[int, Field(ge=0, lt=100_000)]
    created_at: TimestampMs
    queued_at: TimestampMs
    started_at: TimestampMs | None
    finished_at: TimestampMs | None
    done: Duration
    total: Duration
    stage: ShortText
    peak_bytes: Count | None
    error: RunError | None
    kept_stage: Name | None
    flops: Annotated[float, Field(ge=0, lt=1e30)] | None
    timed_seconds: Duration | None
    tags: Annotated[
        list[Annotated[str, StringConstraints(pattern=rf"^{TAG.pattern}$")]],
        Field(max_length=MOST_TAGS),
    ]
    note: Annotated[str, StringConstraints(max_length=NOTE_LETTERS), AfterValidator(printable)]
    lane: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,20}$")]  # replaced by the job kind


class AttemptRow(StoredRow):
    """An attempt of the run."""

    table: Literal["attempts"] = "attempts"
    n: Annotated[int, Field(ge=1, lt=100_000)]
    engine: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,40}$")]
    launched_at: TimestampMs
    started_at: TimestampMs | None
    beat_at: TimestampMs | None
    ended_at: TimestampMs | None
    exit_code: Annotated[int, Field(gt=-1000, lt=1000)] | None
    outcome: Name | None
    resumed_from: ShortText | None


class EventRow(StoredRow):
    """An entry of the run's history."""

    table: Literal["job_events"] = "job_events"
    at: TimestampMs
    type: Name
    actor: Name
    text: ShortText


class MetricPointRow(StoredRow):
    """A point of a metric's curve."""

    table: Literal["metric_points"] = "metric_points"
    family: Family
    stage: OptionalName
    series: OptionalName
    axis: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,39}$")]
    step: Annotated[int, Field(ge=0, lt=2**53)]
    at: TimestampMs
    value: Number


class ResultRow(StoredRow):
    """A final value of a metric."""

    table: Literal["results"] = "results"
    stage: Name
    family: Family
    series: OptionalName
    value: Number
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    n: Count | None
    details: JsonObject


class StepTimeRow(StoredRow):
    """Duration of a step."""

    table: Literal["step_times"] = "step_times"
    step: Name
    seconds: Duration


class DecoderReportRow(StoredRow):
    """Benchmark report of a decoder."""

    table: Literal["decoder_reports"] = "decoder_reports"
    decoder: Name
    report: dict[Name, Scalar | dict[Name, Scalar | Annotated[list[Number], Field(max_length=2)]]]


class TensorSnapshotRow(StoredRow):
    """Histogram and statistics of a tensor. `counts`: packed bins."""

    table: Literal["tensor_snapshots"] = "tensor_snapshots"
    tensor: Name
    stage: Name
    step: SmallCount
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
    def _check_values(self) -> "TensorSnapshotRow":
        if not self.lo < self.hi:
            raise ValueError("the histogram has no width")
        if missing := BASE_STATISTICS - self.stats.keys():
            raise ValueError(f"the statistic {min(missing)} is missing")
        return self


class TensorProfileRow(StoredRow):
    """A profile array of a tensor or model. `values`: packed float32 values."""

    table: Literal["tensor_profiles"] = "tensor_profiles"
    tensor: OptionalName  # empty for a profile of the whole model
    stage: Name
    step: SmallCount
    name: Name
    block: Annotated[int, Field(ge=-1, lt=100_000)]
    module: OptionalName
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=3)]
    values: bytes

    @model_validator(mode="after")
    def _check_values(self) -> "TensorProfileRow":
        if 4 * math.prod(self.shape) > MAX_PROFILE_BYTES:
            raise ValueError("the profile is too large")
        return self


class ArtifactRow(StoredRow):
    """A file or folder that the run saved."""

    table: Literal["artifacts"] = "artifacts"
    kind: Name
    path: Annotated[str, StringConstraints(max_length=1000), AfterValidator(_single_line)]
    bytes: Count
    sha256: Sha256
    created_at: TimestampMs


RunRow = Annotated[
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
ROW_ADAPTER: TypeAdapter[StoredRow] = TypeAdapter(RunRow)
ROW_MODELS: dict[str, type[StoredRow]] = {
    model.model_fields["table"].default: model for model in StoredRow.__subclasses__()
}

RowCheck = Callable[[str, StoredRow], None]
"""Check of a row by its job kind. It is called with the kind and each row, starting with the run
itself, whose config it may complete. It raises an error for a row that such runs do not store."""


def row_line(table: str, columns: dict[str, Any]) -> bytes:
    """Return a database row as a line of a run file. `ValidationError` if an import would reject
    it."""
    model = ROW_MODELS[table]
    names = model.model_fields.keys() - {"table"}
    row = model.model_validate({"table": table} | {name: columns[name] for name in names})
    return row.model_dump_json(exclude_unset=True).encode() + b"\n"


def unpacked_bytes(row: StoredRow) -> int:
    """Unpack the packed column of a row, and return its size in bytes; 0 for rows without one.
    `ValueError` if the data is damaged or contradicts the other columns."""
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
        raise ValueError("a histogram does not unpack to its size")
    if isinstance(row, TensorSnapshotRow):
        weights = sum(struct.unpack(f"<{BINS}I", data)) + row.zeros + row.below + row.above
        if weights != row.n:
            raise ValueError("the counts of a histogram do not add up to its number of weights")
    return size
