"""The tables of 0.1.0, which are made as `backend.store.tables` has them: see `env.py`. The digest
tells whether those have changed since, which takes a migration."""

revision = "0001"
down_revision = None
tables = "493c7106423b00b3ae804fdae8fa36b3516bd453ab27bc8017884d98f69de628"


def upgrade() -> None:
    """Start of all migrations."""
