"""Alembic environment: migrates the database of the current settings, or of a given connection."""

from contextlib import nullcontext

from alembic import context

from backend.settings import settings
from backend.store.dialects.base import NamedLock
from backend.store.dialects.choice import dialect_of
from backend.store.session import engine_for
from backend.store.tables import Table

given = context.config.attributes.get("connection")
opened = engine_for(settings().url).connect if given is None else lambda: nullcontext(given)

with opened() as connection:
    connection = connection.execution_options(immediate=True)
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        dialect_of(connection).lock(connection, NamedLock.MIGRATION)  # of another machine
        context.run_migrations()
        dialect_of(connection).after_migration(connection)
