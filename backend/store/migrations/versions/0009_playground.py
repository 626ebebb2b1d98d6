"""which process carries a job out, and votes for answers, which were tags"""

import json
import re

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
VOTE = re.compile(r"tie|better-([1-4])")
VOTER = "local"  # only hosts could vote
JOBS = sa.table("jobs", sa.column("id", INTEGER), sa.column("tags", sa.JSON()))


def upgrade() -> None:
    lane = sa.Column("lane", sa.String(), nullable=False, server_default="slots")
    op.add_column("jobs", lane)
    op.execute("UPDATE jobs SET lane = 'playground' WHERE kind = 'generate'")
    op.create_table(
        "votes",
        sa.Column("job_id", INTEGER, nullable=False),
        sa.Column("voter", sa.String(), nullable=False),
        sa.Column("choice", INTEGER, nullable=False),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("at", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_votes_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "voter", name="pk_votes"),
        sqlite_with_rowid=False,
    )
    _move_votes()


def _move_votes() -> None:
    """The vote of a run is its first tag that was one."""
    database = op.get_bind()
    voted = sa.text(
        "SELECT id, CAST(tags AS TEXT), created_at FROM jobs"
        " WHERE kind = 'generate' AND CAST(tags AS TEXT) != '[]'"
    )
    for number, stored, created_at in database.execute(voted).all():
        try:
            tags = json.loads(stored)
        except ValueError:  # a damaged row
            continue
        found = [match for tag in tags if (match := VOTE.fullmatch(str(tag)))]
        if not found:
            continue
        database.execute(
            sa.text("INSERT INTO votes VALUES (:job_id, :voter, :choice, false, :at)"),
            {"job_id": number, "voter": VOTER, "choice": int(found[0][1] or 0), "at": created_at},
        )
        left = [tag for tag in tags if not VOTE.fullmatch(str(tag))]
        database.execute(sa.update(JOBS).where(JOBS.c.id == number).values(tags=left))


def downgrade() -> None:
    op.drop_table("votes")
    op.drop_column("jobs", "lane")
