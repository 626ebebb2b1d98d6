"""An index of what is deleted: the state of the queue, which every page shows, counts it."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
tables = "4ccf8222ea8dc35823398808386975cd7aa32a38b3b13cda8f46fbb2de44d6f0"


def upgrade() -> None:
    op.create_index(op.f("ix_jobs_removed_at"), "jobs", ["removed_at"])
