"""Votes on runs go; those on the answers of a conversation are with its messages."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
tables = "493c7106423b00b3ae804fdae8fa36b3516bd453ab27bc8017884d98f69de628"


def upgrade() -> None:
    op.drop_table("votes")
