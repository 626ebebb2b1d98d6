"""grids: the setting `symmetric` of DL-QAT runs becomes `grid`"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JOBS = sa.table(
    "jobs",
    sa.column("id", INTEGER),
    sa.column("kind", sa.String()),
    sa.column("config", sa.JSON()),
    sa.column("config_hash", sa.String()),
)


def upgrade() -> None:
    grids = {True: "symmetric", False: "zero-point"}
    _rename("symmetric", "grid", grids)


def downgrade() -> None:
    _rename("grid", "symmetric", {"symmetric": True, "zero-point": False})


def _rename(old: str, new: str, values: dict[Any, Any]) -> None:
    """The setting in its place among the others; what has no value there stays as it is."""
    found = op.get_bind().execute(sa.select(JOBS.c.id, JOBS.c.config).where(JOBS.c.kind == "dlqat"))
    for job_id, config in found.all():
        if config.get(old) not in values:
            continue
        renamed = {
            new if name == old else name: values[value] if name == old else value
            for name, value in config.items()
        }
        # As `config_hash` had it when this was written: identical runs are found by it.
        digest = hashlib.sha256(json.dumps(["dlqat", renamed], sort_keys=True).encode())
        changed = {"config": renamed, "config_hash": digest.hexdigest()}
        op.get_bind().execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(changed))
