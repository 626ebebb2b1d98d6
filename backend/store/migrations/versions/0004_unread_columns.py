"""columns that nothing reads"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # Not in a batch, which would drop the table and, by its cascades, all that hangs on it.
    op.drop_column("jobs", "error_kind")
    op.drop_column("job_events", "attempt_n")
    op.drop_column("supervisors", "pid")
    op.drop_column("supervisors", "version")


def downgrade() -> None:
    op.add_column(
        "supervisors", sa.Column("version", sa.String(), server_default="", nullable=False)
    )
    op.add_column("supervisors", sa.Column("pid", WHOLE, server_default="0", nullable=False))
    op.add_column("job_events", sa.Column("attempt_n", WHOLE, nullable=True))
    op.add_column("jobs", sa.Column("error_kind", sa.String(), nullable=True))
