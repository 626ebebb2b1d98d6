"""The supported kinds of databases."""

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from backend.store.dialects.base import Dialect
from backend.store.dialects.postgresql import PostgreSQL
from backend.store.dialects.sqlite import SQLite

DIALECTS: dict[str, Dialect] = {"sqlite": SQLite(), "postgresql": PostgreSQL()}


def dialect_of(database: Engine | Connection | Session) -> Dialect:
    """The dialect of an open database."""
    bind = database.get_bind() if isinstance(database, Session) else database
    return DIALECTS[bind.dialect.name]
