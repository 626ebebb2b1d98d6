"""the bytes on disk of the folder of a run that has ended"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("disk_bytes", INTEGER, nullable=True))
    op.create_index("ix_jobs_disk_bytes", "jobs", ["disk_bytes"])


def downgrade() -> None:
    op.drop_index("ix_jobs_disk_bytes", "jobs")
    op.drop_column("jobs", "disk_bytes")
