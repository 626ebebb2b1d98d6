"""The tables of 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("config_hash", sa.String(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("priority", INTEGER, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("desired", sa.String(), nullable=False),
        sa.Column("attempts_made", INTEGER, nullable=False),
        sa.Column("retries_left", INTEGER, nullable=False),
        sa.Column("not_before", INTEGER, nullable=False),
        sa.Column("parent", INTEGER, nullable=True),
        sa.Column("sweep", INTEGER, nullable=True),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.Column("queued_at", INTEGER, nullable=False),
        sa.Column("started_at", INTEGER, nullable=True),
        sa.Column("finished_at", INTEGER, nullable=True),
        sa.Column("desired_at", INTEGER, nullable=True),
        sa.Column("done", sa.Double(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("peak_bytes", INTEGER, nullable=True),
        sa.Column("disk_bytes", INTEGER, nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("kept_stage", sa.String(), nullable=True),
        sa.Column("flops", sa.Double(), nullable=True),
        sa.Column("timed_seconds", sa.Double(), nullable=True),
        sa.Column("tags", sa.JSON(), server_default="[]", nullable=False),
        sa.Column("note", sa.String(), server_default="", nullable=False),
        sa.Column("lane", sa.String(), server_default="slots", nullable=False),
        sa.Column("archived_at", INTEGER, nullable=True),
        sa.Column("removed_at", INTEGER, nullable=True),
        sa.Column("purged", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.CheckConstraint("desired IN ('run', 'stop', 'kill')", name=op.f("ck_jobs_desired")),
        sa.CheckConstraint(
            "state IN ('queued', 'starting', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled', 'lost')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["parent"], ["jobs.id"], name=op.f("fk_jobs_parent")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_config_hash"), "jobs", ["config_hash"], unique=False)
    op.create_index(op.f("ix_jobs_disk_bytes"), "jobs", ["disk_bytes"], unique=False)
    op.create_index("ix_jobs_kind", "jobs", ["kind", "id"], unique=False)
    op.create_index("ix_jobs_order", "jobs", ["state", "priority", "queued_at"], unique=False)
    op.create_index(op.f("ix_jobs_parent"), "jobs", ["parent"], unique=False)
    op.create_index(op.f("ix_jobs_sweep"), "jobs", ["sweep"], unique=False)
    op.create_table(
        "reports",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("blocks", sa.JSON(), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.Column("saved_at", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
    )
    op.create_table(
        "supervisors",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("beat_at", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_supervisors")),
    )
    op.create_table(
        "views",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("query", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("saved_at", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_views")),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_artifacts_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("path", name=op.f("uq_artifacts_path")),
    )
    op.create_index(op.f("ix_artifacts_job_id"), "artifacts", ["job_id"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("n", INTEGER, nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("engine_ref", sa.JSON(), nullable=True),
        sa.Column("launched_at", INTEGER, nullable=False),
        sa.Column("started_at", INTEGER, nullable=True),
        sa.Column("beat_at", INTEGER, nullable=True),
        sa.Column("ended_at", INTEGER, nullable=True),
        sa.Column("exit_code", INTEGER, nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("resumed_from", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("job_id", "n", name=op.f("uq_attempts_job_id_n")),
    )
    op.create_index("ix_attempts_live", "attempts", ["ended_at", "beat_at"], unique=False)
    op.create_table(
        "decoder_reports",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("decoder", sa.String(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_decoder_reports_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "decoder", name=op.f("pk_decoder_reports")),
    )
    op.create_table(
        "job_events",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("at", INTEGER, nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    op.create_index(op.f("ix_job_events_job_id"), "job_events", ["job_id"], unique=False)
    op.create_table(
        "metric_points",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("step", INTEGER, nullable=False),
        sa.Column("at", INTEGER, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_metric_points_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "name", "step", name=op.f("pk_metric_points")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "needs",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("needed_id", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_needs_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["needed_id"], ["jobs.id"], name=op.f("fk_needs_needed_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "needed_id", name=op.f("pk_needs")),
    )
    op.create_index(op.f("ix_needs_needed_id"), "needs", ["needed_id"], unique=False)
    op.create_table(
        "results",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("n", INTEGER, nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_results_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "stage", "metric", name=op.f("pk_results")),
    )
    op.create_table(
        "step_times",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_step_times_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "step", name=op.f("pk_step_times")),
    )
    op.create_table(
        "tensor_profiles",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("tensor", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("step", INTEGER, server_default=sa.text("0"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("block", INTEGER, nullable=False),
        sa.Column("module", sa.String(), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_tensor_profiles_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "job_id", "tensor", "stage", "step", "name", name=op.f("pk_tensor_profiles")
        ),
    )
    op.create_table(
        "tensor_snapshots",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("tensor", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("step", INTEGER, server_default=sa.text("0"), nullable=False),
        sa.Column("block", INTEGER, nullable=False),
        sa.Column("module", sa.String(), nullable=False),
        sa.Column("n", INTEGER, nullable=False),
        sa.Column("zeros", INTEGER, nullable=False),
        sa.Column("below", INTEGER, nullable=False),
        sa.Column("above", INTEGER, nullable=False),
        sa.Column("lo", sa.Double(), nullable=False),
        sa.Column("hi", sa.Double(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("stats", sa.JSON(), nullable=False),
        sa.Column("quantiles", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_tensor_snapshots_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "job_id", "tensor", "stage", "step", name=op.f("pk_tensor_snapshots")
        ),
    )
    op.create_table(
        "votes",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("voter", sa.String(), nullable=False),
        sa.Column("choice", INTEGER, nullable=False),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("at", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_votes_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "voter", name=op.f("pk_votes")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "slots",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("attempt_id", INTEGER, nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name=op.f("fk_slots_attempt_id")),
        sa.PrimaryKeyConstraint("host", "number", name=op.f("pk_slots")),
        sa.UniqueConstraint("attempt_id", name=op.f("uq_slots_attempt_id")),
    )
