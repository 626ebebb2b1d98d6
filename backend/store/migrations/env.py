"""Alembic environment: migrates the database of the current settings."""

from alembic import context

from backend.settings import settings
from backend.store.session import engine_for
from backend.store.tables import Table

with engine_for(settings().url).connect().execution_options(immediate=True) as connection:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
