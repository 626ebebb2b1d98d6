"""needs: runs that wait for others"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
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
    op.create_index(op.f("ix_needs_needed_id"), "needs", ["needed_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_needs_needed_id"), "needs")
    op.drop_table("needs")
