"""tags, notes and saved views"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch, which would drop the table and, by its cascades, all that hangs on it.
    op.add_column("jobs", sa.Column("tags", sa.JSON(), server_default="[]", nullable=False))
    op.add_column("jobs", sa.Column("note", sa.String(), server_default="", nullable=False))
    op.create_table(
        "views",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("query", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("saved_at", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_views")),
    )


def downgrade() -> None:
    op.drop_table("views")
    op.drop_column("jobs", "note")
    op.drop_column("jobs", "tags")
