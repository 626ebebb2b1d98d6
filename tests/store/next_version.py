"""A version to come: the code of this one in a folder of its own, with another number, and one more
column in the database."""

import os
import shutil
from pathlib import Path

from backend.queue.launcher import child_environment

ROOT, NUMBER = Path(__file__).parents[2], "99.0"
COPIED = ("backend", "jobs", "ui", "tests/plugins")
MIGRATION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "9999", "{before}", None, None
def upgrade():
    op.add_column("jobs", sa.Column("later", sa.Integer(), nullable=True))
"""


def next_version(there: Path) -> dict[str, str]:
    """Make the folder; the environment of its processes."""
    unneeded = shutil.ignore_patterns("example_runs")  # what is compiled holds there, too
    for room in COPIED:
        shutil.copytree(ROOT / room, there / room, ignore=unneeded)
    shutil.copy(ROOT / "app.py", there)
    frame = there / "ui" / "frame.py"
    told = frame.read_text().replace('version("slimscope")', f'"{NUMBER}"')
    frame.write_text(told)
    versions = there / "backend/store/migrations/versions"
    before = max(versions.glob("[0-9]*")).name[:4]
    (versions / "9999_next.py").write_text(MIGRATION.format(before=before))
    return {**os.environ, **child_environment(), "PYTHONPATH": str(there)}
