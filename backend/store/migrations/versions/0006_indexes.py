"""indexes for the replays of a run and for the runs of one kind"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_parent", "jobs", ["parent"])
    op.create_index("ix_jobs_kind", "jobs", ["kind", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_kind", "jobs")
    op.drop_index("ix_jobs_parent", "jobs")
