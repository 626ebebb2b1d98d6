"""The tables of 0.1.0, which are made as `backend.store.tables` has them: see `env.py`. The digest
tells whether those have changed since, which takes a migration."""

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
tables = "cb2a845d09dc38bc36fee0d9c1838de6968fc0b0174180554439d14c0fcce8f4"


def upgrade() -> None:
    """Where all migrations begin."""
