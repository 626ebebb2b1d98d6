"""profiles and sweeps"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
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
    # Not in a batch, which would drop the table and, by its cascades, all that hangs on it.
    op.add_column("jobs", sa.Column("sweep", INTEGER, nullable=True))
    op.create_index(op.f("ix_jobs_sweep"), "jobs", ["sweep"])


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_sweep"), "jobs")
    op.drop_column("jobs", "sweep")
    op.drop_table("tensor_profiles")
