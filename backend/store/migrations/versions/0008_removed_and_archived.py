"""when a run was deleted or archived"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for column in ("removed_at", "archived_at"):
        op.add_column("jobs", sa.Column(column, INTEGER, nullable=True))
    op.add_column(
        "jobs", sa.Column("purged", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    for column in ("purged", "archived_at", "removed_at"):
        op.drop_column("jobs", column)
