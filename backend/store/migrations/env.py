"""Alembic environment: migrates the database of the current settings, or of a given connection, in
one transaction. An empty one gets the tables as they are today, and counts as migrated."""

from contextlib import nullcontext

from alembic import context

from backend.settings import settings
from backend.store.dialects import dialect_of
from backend.store.dialects.base import NamedLock
from backend.store.session import engine_for
from backend.store.tables import Table

given = context.config.attributes["connection"]
engine = engine_for(settings().url).execution_options(immediate=True)

with engine.begin() if given is None else nullcontext(given) as connection:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    dialect_of(connection).lock(connection, NamedLock.MIGRATION)  # of another machine
    if (migration := context.get_context()).get_current_revision() is None:
        Table.metadata.create_all(connection, checkfirst=False)
        migration.stamp(context.script, "head")
    else:
        context.run_migrations()
    dialect_of(connection).after_migration(connection)
