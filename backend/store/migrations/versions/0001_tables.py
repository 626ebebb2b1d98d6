"""The tables of 0.1.0, which are made as `backend.store.tables` has them: see `env.py`. The digest
tells whether those have changed since, which takes a migration."""

revision = "0001"
down_revision = None
tables = "a399a1d73679543e4d35e1c9aa2d23e43d68a72937201904ffdc56e5f61a999d"


def upgrade() -> None:
    """Start of all migrations."""
