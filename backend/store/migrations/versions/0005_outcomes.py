"""outcomes of runs in columns and tables of their own, instead of rows among the results"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
RUN, SECONDS, TASK = "run", "seconds/", "speed_up/"
JOBS = sa.table(
    "jobs",
    sa.column("id", INTEGER),
    sa.column("kind", sa.String()),
    sa.column("kept_stage", sa.String()),
    sa.column("flops", sa.Double()),
    sa.column("timed_seconds", sa.Double()),
)
RESULTS = sa.table(
    "results",
    sa.column("job_id", INTEGER),
    sa.column("stage", sa.String()),
    sa.column("metric", sa.String()),
    sa.column("value", sa.Double()),
    sa.column("stderr", sa.Double()),
    sa.column("n", INTEGER),
    sa.column("details", sa.JSON()),
)
STEP_TIMES = sa.table(
    "step_times",
    sa.column("job_id", INTEGER),
    sa.column("step", sa.String()),
    sa.column("seconds", sa.Double()),
)
DECODERS = sa.table(
    "decoder_reports",
    sa.column("job_id", INTEGER),
    sa.column("decoder", sa.String()),
    sa.column("report", sa.JSON()),
)


def upgrade() -> None:
    # Not in a batch, which would drop the table and, by its cascades, all that hangs on it.
    op.add_column("jobs", sa.Column("kept_stage", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("flops", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("timed_seconds", sa.Double(), nullable=True))
    for table, name, value in (
        ("step_times", "step", sa.Column("seconds", sa.Double(), nullable=False)),
        ("decoder_reports", "decoder", sa.Column("report", sa.JSON(), nullable=False)),
    ):
        op.create_table(
            table,
            sa.Column("job_id", INTEGER, nullable=False),
            sa.Column(name, sa.String(), nullable=False),
            value,
            sa.ForeignKeyConstraint(
                ["job_id"], ["jobs.id"], name=op.f(f"fk_{table}_job_id"), ondelete="CASCADE"
            ),
            sa.PrimaryKeyConstraint("job_id", name, name=op.f(f"pk_{table}")),
        )
    _move_outcomes()
    _move_step_times()
    _move_decoders()


def _move_outcomes() -> None:
    """`run, kept` and `run, work` become columns of the job."""
    for job_id, metric, value, details in _read("kept", "work"):
        values = {"kept_stage": details.get("kept")}
        if metric == "work":
            values = {"flops": value, "timed_seconds": details.get("timed")}
        op.get_bind().execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(**values))
    op.get_bind().execute(_delete(RESULTS.c.metric.in_(["kept", "work"])))


def _read(*metrics: str) -> list[Any]:
    columns = (RESULTS.c.job_id, RESULTS.c.metric, RESULTS.c.value, RESULTS.c.details)
    query = sa.select(*columns).where(RESULTS.c.stage == RUN, RESULTS.c.metric.in_(metrics))
    return list(op.get_bind().execute(query))


def _delete(condition: Any) -> Any:
    return sa.delete(RESULTS).where(RESULTS.c.stage == RUN, condition)


def _move_step_times() -> None:
    """`run, seconds/STEP` becomes a row of `step_times`."""
    timed = RESULTS.c.metric.like(f"{SECONDS}%")
    step = sa.func.substr(RESULTS.c.metric, len(SECONDS) + 1)
    chosen = sa.select(RESULTS.c.job_id, step, RESULTS.c.value).where(RESULTS.c.stage == RUN, timed)
    op.get_bind().execute(sa.insert(STEP_TIMES).from_select(["job_id", "step", "seconds"], chosen))
    op.get_bind().execute(_delete(timed))


def _move_decoders() -> None:
    """The details of a speed run's rows become one report per decoder; the figures stay."""
    query = sa.select(RESULTS).join(JOBS, JOBS.c.id == RESULTS.c.job_id)
    rows = op.get_bind().execute(query.where(JOBS.c.kind == "speed", RESULTS.c.stage != RUN))
    decoders: dict[tuple[int, str], list[Any]] = defaultdict(list)
    for row in rows:
        decoders[row.job_id, row.stage].append(row)
    for (job_id, decoder), found in decoders.items():
        values = {"job_id": job_id, "decoder": decoder, "report": _report(decoder, found)}
        op.get_bind().execute(sa.insert(DECODERS).values(**values))
        for row in found:
            _keep_range(row)


def _keep_range(row: Any) -> None:
    kept = {name: row.details[name] for name in ("lowest", "highest") if name in row.details}
    key = (RESULTS.c.job_id == row.job_id, RESULTS.c.stage == row.stage)
    update = sa.update(RESULTS).where(*key, RESULTS.c.metric == row.metric)
    op.get_bind().execute(update.values(details=kept))


def _report(decoder: str, rows: Iterable[Any]) -> dict[str, Any]:
    """The report of one decoder, as `jobs.speed.report` reads it."""
    found: dict[str, Any] = {"name": decoder, "ranges": {}, "tasks": {}}
    for row in rows:
        found |= _figures(row.metric, row.value, row.n, row.details)
        if "lowest" in row.details:
            found["ranges"][row.metric] = [row.details["lowest"], row.details["highest"]]
        if row.metric.startswith(TASK):
            task = row.metric.removeprefix(TASK)
            found["tasks"][task] = [row.value, row.details.get("accepted", 1.0)]
    return found


def _figures(
    metric: str, value: float, n: int | None, details: Mapping[str, Any]
) -> dict[str, Any]:
    match metric:
        case "tokens_per_second":
            return {"speed": value}
        case "speed_up":
            return {
                "speed_up": value,
                "nodes": details.get("nodes", 1),
                "kind": details.get("arm", ""),
            }
        case "accepted_length":
            parts = {name: details.get(name, {}) for name in ("lengths", "hits")}
            return {"accepted": value, **parts}
        case "break_even":
            return {"break_even": value, "milliseconds": details.get("milliseconds", {})}
        case "same_text":
            difference = details.get("first_difference")
            return {"same": value, "prompts": n or 0, "first_difference": difference}
    return {}


def downgrade() -> None:
    """The figures return to the results; the details of speed runs do not."""
    bind = op.get_bind()
    for job in bind.execute(sa.select(JOBS)):
        if job.kept_stage is not None:
            _insert(job.id, "kept", 1.0, {"kept": job.kept_stage})
        if job.flops is not None:
            timed = {} if job.timed_seconds is None else {"timed": job.timed_seconds}
            _insert(job.id, "work", job.flops, timed)
    for row in bind.execute(sa.select(STEP_TIMES)):
        _insert(row.job_id, SECONDS + row.step, row.seconds, {})
    op.drop_table("decoder_reports")
    op.drop_table("step_times")
    for column in ("kept_stage", "flops", "timed_seconds"):
        op.drop_column("jobs", column)


def _insert(job_id: int, metric: str, value: float, details: Mapping[str, Any]) -> None:
    values = {"job_id": job_id, "stage": RUN, "metric": metric, "value": value}
    op.get_bind().execute(sa.insert(RESULTS).values(**values, details=dict(details)))
