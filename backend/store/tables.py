"""Database tables. Times are UTC milliseconds since 1970.

The job row is the single source of truth: the web interface and the command line write `desired`,
the supervisor writes `state`, and a job's process writes its progress, results and outcome."""

import hashlib
import json
import re
import zlib
from types import NoneType
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backend.metric_key import MetricKey
from backend.store.json_column import DamagedJson, DamagedList, JsonColumn
from backend.store.states import Lane, State

CONSTRAINT_NAMES = {  # Alembic can only change named constraints
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
JOB = "jobs.id"
CLUSTER = "the cluster"  # replaces a host name, which never contains a space
EXAMPLE = "example"  # replaces the number of a run that the package includes
KIND_NAME = re.compile(r"[a-z][a-z0-9]{0,39}")
RUN_NAME = re.compile(
    rf"[a-z][a-z0-9]{{0,39}}-(?:\d{{1,15}}|{EXAMPLE}(?:-[2-9])?)"
)  # of `run_name`
EXAMPLE_ID_RANGE = 2**31  # ids reserved for the first example of each kind, for the second, …
DAMAGED = "damaged"
KEPT_REASON = "kept_reason"  # key in the environment of a run


class Table(DeclarativeBase):
    """Base class of the tables."""

    metadata = MetaData(naming_convention=CONSTRAINT_NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        int: BigInteger().with_variant(Integer, "sqlite"),
        dict[str, Any]: JsonColumn(dict),
        list[Any]: JsonColumn(list),
        list[float]: JsonColumn(list, items=(float, int, NoneType)),
        list[int]: JsonColumn(list, items=(int,)),
        list[str]: JsonColumn(list, items=(str,)),
    }


def run_name(kind: str, number: int) -> str:
    """The name of a run, such as sds-0042, or sds-example-2 for an example.

    It is also the name of the run's folder. The malformed kind of a damaged row, which could lead
    to another folder, becomes "damaged"."""
    name = kind if KIND_NAME.fullmatch(kind) else DAMAGED
    if number > 0:
        return f"{name}-{number:04d}"
    index = (-1 - number) // EXAMPLE_ID_RANGE + 1
    return f"{name}-{EXAMPLE}" + (f"-{index}" if index > 1 else "")


def example_number(kind: str, index: int) -> int:
    """The id of the example `index`, from 1, of a kind: negative, so that it takes no id of a run
    of the user."""
    return -1 - (zlib.crc32(kind.encode()) >> 1) - (index - 1) * EXAMPLE_ID_RANGE


def config_hash(kind: str, config: dict[str, Any]) -> str:
    """Hex sha256 of a kind and a config, independent of the order of the fields."""
    return hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode()).hexdigest()


class Job(Table):
    """A run: its config, state and outcome."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"state IN ({', '.join(repr(s.value) for s in State)})", name="state"),
        CheckConstraint("desired IN ('run', 'stop', 'kill')", name="desired"),
        Index("ix_jobs_order", "state", "priority", "queued_at"),
        Index("ix_jobs_kind", "kind", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(default="")
    owner: Mapped[str]
    config: Mapped[dict[str, Any]]
    config_hash: Mapped[str] = mapped_column(index=True)
    plan: Mapped[dict[str, Any] | None] = mapped_column(  # large; see `queries.plan`
        JsonColumn(dict, optional=True), deferred=True
    )
    environment: Mapped[dict[str, Any]] = mapped_column(default=dict)
    priority: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(default=State.QUEUED)
    desired: Mapped[str] = mapped_column(default="run")
    attempts_made: Mapped[int] = mapped_column(default=0)
    retries_left: Mapped[int] = mapped_column(default=2)
    not_before: Mapped[int] = mapped_column(default=0)
    parent: Mapped[int | None] = mapped_column(ForeignKey(JOB), index=True)
    sweep: Mapped[int | None] = mapped_column(index=True)  # id of the first job of the sweep
    created_at: Mapped[int]
    queued_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]
    desired_at: Mapped[int | None]
    done: Mapped[float] = mapped_column(default=0.0)
    total: Mapped[float] = mapped_column(default=0.0)
    stage: Mapped[str] = mapped_column(default="")
    eta_s: Mapped[float | None]
    peak_bytes: Mapped[int | None]
    disk_bytes: Mapped[int | None] = mapped_column(index=True)  # size of the folder after the end
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn(dict, optional=True))
    kept_stage: Mapped[str | None]  # stage of the saved weights
    flops: Mapped[float | None]  # work of phases without a time budget; set when the run ends
    timed_seconds: Mapped[float | None]  # duration of phases with a time budget
    tags: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    note: Mapped[str] = mapped_column(default="", server_default="")
    lane: Mapped[str] = mapped_column(default=Lane.SLOTS, server_default=Lane.SLOTS)
    archived_at: Mapped[int | None]
    removed_at: Mapped[int | None] = mapped_column(index=True)  # deleted by a host; hidden
    purged: Mapped[bool] = mapped_column(default=False, server_default=false())  # data is deleted

    @property
    def run(self) -> str:
        """The name of the run, such as sds-0042."""
        return run_name(self.kind, self.id)

    @property
    def damaged(self) -> bool:
        """True if a part of the row cannot be read."""
        columns = (self.config, self.environment, self.error, self.tags)
        is_damaged = any(isinstance(value, DamagedJson | DamagedList) for value in columns)
        return is_damaged or not KIND_NAME.fullmatch(self.kind)

    @property
    def shown_state(self) -> str:
        """The state on the screen; "damaged" if a part of the row cannot be read."""
        return DAMAGED if self.damaged else self.state

    @property
    def error_text(self) -> str:
        """The error with its reason and remedy; "" without an error."""
        return " ".join(str(part) for part in (self.error or {}).values() if part)

    @property
    def kept_reason(self) -> str:
        """The reason why the run keeps `kept_stage`; "" if it was not recorded."""
        return str((self.environment or {}).get(KEPT_REASON) or "")

    @property
    def share(self) -> float | None:
        """Completed fraction of the work, 0 to 1; None if unknown."""
        return min(1.0, self.done / self.total) if self.total else None


class Attempt(Table):
    """A process that executes a job. Only the holder of its token may write for the job."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("job_id", "n"),
        Index("ix_attempts_live", "ended_at", "beat_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"))
    n: Mapped[int]
    token: Mapped[str]
    engine: Mapped[str]
    engine_ref: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn(dict, optional=True))
    launched_at: Mapped[int]
    started_at: Mapped[int | None]
    beat_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    exit_code: Mapped[int | None]
    outcome: Mapped[str | None]
    resumed_from: Mapped[str | None]


class Slot(Table):
    """Capacity for one running job. `attempt_id` is set by compare-and-set, never overwritten."""

    __tablename__ = "slots"

    host: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    attempt_id: Mapped[int | None] = mapped_column(ForeignKey("attempts.id"), unique=True)


class Supervisor(Table):
    """The last heartbeat of the supervisor; in the row `CLUSTER`, the cluster's last answer."""

    __tablename__ = "supervisors"

    host: Mapped[str] = mapped_column(primary_key=True)
    beat_at: Mapped[int]


class Event(Table):
    """An event of a job. The table is append-only: audit trail and change detection of pages."""

    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), index=True)
    at: Mapped[int]
    type: Mapped[str]
    actor: Mapped[str]
    text: Mapped[str] = mapped_column(default="")


class Conversation(Table):
    """A chat with one to four models; its messages form a tree."""

    __tablename__ = "conversations"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    sides: Mapped[list[str]]  # models and drafters, in the order they were chosen
    blind: Mapped[bool]
    created_at: Mapped[int]


class MessageRow(Table):
    """A prompt, which follows the prompt `parent`, or an answer to the prompt `parent`."""

    __tablename__ = "messages"
    __table_args__ = (UniqueConstraint("parent", "side"),)  # one answer of each side

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[int] = mapped_column(
        ForeignKey("conversations.id", ondelete="CASCADE"), index=True
    )
    parent: Mapped[int | None] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"))
    side: Mapped[int | None]  # number of the answering side, from 1; None for a prompt
    author: Mapped[str]
    text: Mapped[str]
    at: Mapped[int]
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)  # prompts only
    transcript: Mapped[list[Any]] = mapped_column(default=list, deferred=True)  # answers only
    votes: Mapped[dict[str, Any]] = mapped_column(default=dict)  # [choice, blind] by voter


class ApiKey(Table):
    """A key for the API `/v1`, with the permissions of a host; only its hash is stored."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int]
    revoked_at: Mapped[int | None]


class MetricPoint(Table):
    """A point of the curve of a `MetricKey`. A resumed attempt overwrites it."""

    __tablename__ = "metric_points"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    family: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    series: Mapped[str] = mapped_column(primary_key=True)
    axis: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[int]
    value: Mapped[float]


class Result(Table):
    """A final figure of a run for a `MetricKey`."""

    __tablename__ = "results"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    family: Mapped[str] = mapped_column(primary_key=True)
    series: Mapped[str] = mapped_column(primary_key=True, default="")
    value: Mapped[float]
    stderr: Mapped[float | None]
    n: Mapped[int | None]
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)

    @property
    def metric(self) -> MetricKey:
        """The metric, without the stage."""
        return MetricKey(self.family, series=self.series or "")


class StepTime(Table):
    """Wall-clock seconds of a step of a run, over all attempts."""

    __tablename__ = "step_times"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float]


class DecoderRow(Table):
    """The results of a benchmark for one decoder; see `jobs.benchmark.report.DecoderReport`."""

    __tablename__ = "decoder_reports"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    decoder: Mapped[str] = mapped_column(primary_key=True)
    report: Mapped[dict[str, Any]]


class TensorRow(Table):
    """Statistics and histogram of one tensor at one stage; see `TensorSnapshot`."""

    __tablename__ = "tensor_snapshots"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    tensor: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, server_default=text("0"))
    block: Mapped[int]
    module: Mapped[str]
    n: Mapped[int]
    zeros: Mapped[int]
    below: Mapped[int]
    above: Mapped[int]
    lo: Mapped[float]
    hi: Mapped[float]
    counts: Mapped[bytes] = mapped_column(LargeBinary)  # zlib of little-endian uint32
    stats: Mapped[dict[str, Any]]
    quantiles: Mapped[list[float]]


class ProfileRow(Table):
    """One statistic per channel or group of a tensor at one stage; see `TensorProfile`."""

    __tablename__ = "tensor_profiles"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    tensor: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, server_default=text("0"))
    name: Mapped[str] = mapped_column(primary_key=True)
    block: Mapped[int]
    module: Mapped[str]
    shape: Mapped[list[int]]
    values: Mapped[bytes] = mapped_column(LargeBinary)  # zlib of little-endian float32


class Artifact(Table):
    """A file or folder that a run produced, below the artifact folder."""

    __tablename__ = "artifacts"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), index=True)
    kind: Mapped[str]
    path: Mapped[str] = mapped_column(unique=True)
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(default="")
    created_at: Mapped[int]


class Need(Table):
    """A run that waits for another run, whose output is its input."""

    __tablename__ = "needs"

    job_id: Mapped[int] = mapped_column(ForeignKey(JOB, ondelete="CASCADE"), primary_key=True)
    needed_id: Mapped[int] = mapped_column(
        ForeignKey(JOB, ondelete="CASCADE"), primary_key=True, index=True
    )


class SavedView(Table):
    """A named view of the run list, stored as its URL query."""

    __tablename__ = "views"

    name: Mapped[str] = mapped_column(primary_key=True)
    query: Mapped[str]
    owner: Mapped[str]
    saved_at: Mapped[int]


class Story(Table):
    """A story: ordered views; see `backend.queue.stories.StoryView`."""

    __tablename__ = "stories"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    owner: Mapped[str]
    views: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[int]
    saved_at: Mapped[int]


TABLES_OF_A_RUN: dict[str, type[Table]] = {  # tables with a row or rows per run, by name
    table.__tablename__: table
    for table in (
        Attempt,
        Event,
        MetricPoint,
        Result,
        StepTime,
        DecoderRow,
        TensorRow,
        ProfileRow,
        Artifact,
    )
}
