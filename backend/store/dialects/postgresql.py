"""The PostgreSQL dialect: a database server that several machines share."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from backend.store.dialects.base import BUSY_MS, Dialect, NamedLock, driver_connection
from backend.store.json_column import JsonColumn, write_json

CONNECT_S = 5
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 5, 3, 3
# until a dead connection is detected
PEER_TIMEOUT_S = KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES
OTHER_CLIENTS_QUERY = (
    "SELECT pid, client_addr FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid != pg_backend_pid() AND backend_type = 'client backend'"
)
READ_ONLY_STATE = "25006"  # SQLSTATE of a standby server during a failover


class PostgreSQL(Dialect):
    """A PostgreSQL server.

    Commits are synchronous: processes rely on a commit to survive a crash of the server."""

    title = "PostgreSQL"
    one_machine = False
    reuses_largest_id = False
    backup_advice = "Use pg_dump for the database, and copy the folder artifacts/."

    def options(self) -> dict[str, Any]:
        keepalive = {
            "keepalives_idle": KEEPALIVE_IDLE_S,
            "keepalives_interval": KEEPALIVE_INTERVAL_S,
            "keepalives_count": KEEPALIVE_PROBES,
            "tcp_user_timeout": 1000 * PEER_TIMEOUT_S,
        }
        arguments = {"connect_timeout": CONNECT_S, "application_name": "slimscope", **keepalive}
        return {"connect_args": arguments, "pool_pre_ping": True}

    def prepare(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "connect", _configure_session)
        sa.event.listen(engine, "handle_error", _unify_connection_errors)

    def for_reading(self, engine: sa.Engine) -> sa.Engine:
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def other_users(self, engine: sa.Engine) -> list[str]:
        with engine.connect() as connection:
            clients = connection.execute(sa.text(OTHER_CLIENTS_QUERY)).all()
        return [f"{pid} at {address or 'this machine'}" for pid, address in clients]

    def freeze(self, connection: sa.Connection, tables: sa.MetaData) -> None:
        quote = connection.dialect.identifier_preparer.quote
        names = ", ".join(quote(name) for name in tables.tables)
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE MODE")

    def insert_all(
        self, connection: sa.Connection, table: sa.TableClause, rows: Sequence[Sequence[Any]]
    ) -> None:
        quote = connection.dialect.identifier_preparer.quote
        columns = ", ".join(quote(column.name) for column in table.columns)
        raw = driver_connection(connection)
        statement = f"COPY {quote(table.name)} ({columns}) FROM STDIN"
        errors = connection.dialect.loaded_dbapi.Error
        try:
            with raw.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)
        except errors as error:
            raise DBAPIError.instance(statement, None, error, errors) from error

    def upsert(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Insert or replace rows in one statement with an array per column.

        This is many times faster than a statement per row."""
        keys = [column.name for column in table.primary_key]
        unique_rows = {tuple(row[name] for name in keys): row for row in rows}.values()
        if unique_rows:
            arrays = []
            for column in table.columns:
                values = [row[column.name] for row in unique_rows]
                is_json = isinstance(column.type, JsonColumn)
                arrays.append([*map(write_json, values)] if is_json else values)
            connection.exec_driver_sql(_upsert_statement(table), tuple(arrays))

    def now_ms(self, session: Session) -> int | None:
        seconds = sa.func.extract("epoch", sa.func.clock_timestamp())
        return session.scalar(sa.select(sa.cast(sa.func.floor(seconds * 1000), sa.BigInteger)))

    def lock(self, connection: sa.Connection, lock: NamedLock) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock.number)))

    def try_lock(self, connection: sa.Connection, lock: NamedLock) -> bool:
        return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(lock.number))))

    def among(self, column: Any, numbers: Sequence[int]) -> sa.ColumnElement[bool]:
        """Return a condition with a single array parameter. Binding one parameter per number would
        take longer than the query."""
        return column == sa.func.any(sa.literal([*numbers], sa.ARRAY(sa.BigInteger)))

    def after_migration(self, connection: sa.Connection) -> None:
        """Sort texts by code point, as SQLite does, regardless of the server's locale."""
        localized_columns = connection.execute(
            sa.text(
                "SELECT table_name, column_name FROM information_schema.columns"
                " WHERE table_schema = current_schema() AND data_type = 'character varying'"
                " AND collation_name IS DISTINCT FROM 'C'"
            )
        ).all()
        quote = connection.dialect.identifier_preparer.quote
        for table, column in localized_columns:
            change = f'ALTER COLUMN {quote(column)} TYPE VARCHAR COLLATE "C"'
            connection.exec_driver_sql(f"ALTER TABLE {quote(table)} {change}")

    def version(self, engine: sa.Engine) -> str:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text("SHOW server_version")))

    def bytes(self, engine: sa.Engine) -> int:
        with engine.connect() as connection:
            size_bytes = sa.func.pg_database_size(sa.func.current_database())
            return int(connection.execute(sa.select(size_bytes)).scalar_one())

    def continue_numbering(self, connection: sa.Connection, tables: sa.MetaData) -> None:
        for table in tables.sorted_tables:
            id_column = table.autoincrement_column
            if id_column is None:
                continue
            sequence = sa.func.pg_get_serial_sequence(table.name, id_column.name)
            if connection.scalar(sa.select(sequence)):
                largest = sa.select(sa.func.max(id_column)).scalar_subquery()
                next_id = sa.func.greatest(sa.func.coalesce(largest, 0) + 1, 1)
                connection.execute(sa.select(sa.func.setval(sequence, next_id, False)))


@cache
def _upsert_statement(table: sa.Table) -> str:
    """Return the statement of `upsert`, which has one array parameter per column."""
    dialect = postgresql.dialect()
    quote = dialect.identifier_preparer.quote
    types = [column.type.compile(dialect) for column in table.columns]
    arrays = ", ".join(f"%s::{type_name}[]" for type_name in types)
    names = ", ".join(quote(column.name) for column in table.columns)
    keys = ", ".join(quote(column.name) for column in table.primary_key)
    value_columns = [quote(column.name) for column in table.columns if not column.primary_key]
    assignments = ", ".join(f"{name} = excluded.{name}" for name in value_columns)
    return (
        f"INSERT INTO {quote(table.name)} ({names}) SELECT * FROM unnest({arrays})"
        f" ON CONFLICT ({keys}) DO UPDATE SET {assignments}"
    )


def _configure_session(connection: Any, _record: Any) -> None:
    """Configure a session on the server: timeouts for frozen and dead clients, the lock timeout of
    SQLite, and synchronous commits."""
    settings = {
        "lock_timeout": BUSY_MS,
        "idle_in_transaction_session_timeout": 60_000,  # ms
        "tcp_keepalives_idle": KEEPALIVE_IDLE_S,
        "tcp_keepalives_interval": KEEPALIVE_INTERVAL_S,
        "tcp_keepalives_count": KEEPALIVE_PROBES,
        # keepalive does not probe while data is in flight
        "tcp_user_timeout": 1000 * PEER_TIMEOUT_S,
        "jit": "off",  # compiling our short statements takes longer than running them
    }
    statements = [f"SET {name} = {value}" for name, value in settings.items()]
    with closing(connection.cursor()) as cursor:
        cursor.execute("; ".join(statements))
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()


def _unify_connection_errors(context: sa.ExceptionContext) -> None:
    """Turn every error of an unreachable database into an `OperationalError`.

    Drivers raise various error types for a lost connection or a standby server."""
    state = getattr(context.original_exception, "sqlstate", None)
    is_away = context.is_disconnect or state == READ_ONLY_STATE
    if is_away and not isinstance(context.sqlalchemy_exception, OperationalError):
        original = context.original_exception
        context.chained_exception = OperationalError(
            context.statement, context.parameters, original, connection_invalidated=True
        )
