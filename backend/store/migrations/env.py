"""Alembic environment: migrates the database of the settings, or of a connection, in one
transaction. An empty database gets the newest tables, and counts as migrated."""

from contextlib import nullcontext

from alembic import context

from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.session import engine_for
from backend.store.tables import Table

caller_connection = context.config.attributes["connection"]
engine = engine_for(settings().url).execution_options(immediate=True)
transaction = engine.begin() if caller_connection is None else nullcontext(caller_connection)

with transaction as connection:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    dialect_of(connection).lock(connection, NamedLock.MIGRATION)  # against other machines
    if (migration := context.get_context()).get_current_revision() is None:
        Table.metadata.create_all(connection, checkfirst=False)
        migration.stamp(context.script, "head")
    else:
        context.run_migrations()
    dialect_of(connection).after_migration(connection)
