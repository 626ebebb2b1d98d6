"""PostgreSQL: the tables on a server, for more than one machine."""

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
SILENT_S, ASK_AGAIN_S, ASK_TIMES = 5, 3, 3
GONE_S = SILENT_S + ASK_AGAIN_S * ASK_TIMES  # until a peer that is gone is noticed
OTHERS = (
    "SELECT pid, client_addr FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid != pg_backend_pid() AND backend_type = 'client backend'"
)
READ_ONLY = "25006"  # SQLSTATE of a server that is still, or again, a copy of another one


class PostgreSQL(Dialect):
    """A server. What a process has committed survives a crash of the server: the process goes on
    and would not write it again, so commits are never asynchronous."""

    title = "PostgreSQL"
    one_machine = False
    numbers_follow_largest = False
    backup_advice = "Use pg_dump for it, and copy the folder artifacts/."

    def options(self) -> dict[str, Any]:
        noticed = {
            "keepalives_idle": SILENT_S,
            "keepalives_interval": ASK_AGAIN_S,
            "keepalives_count": ASK_TIMES,
            "tcp_user_timeout": 1000 * GONE_S,
        }
        arguments = {"connect_timeout": CONNECT_S, "application_name": "slimscope", **noticed}
        return {"connect_args": arguments, "pool_pre_ping": True}

    def prepare(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "connect", _tune_postgres)
        sa.event.listen(engine, "handle_error", _say_away)

    def for_reading(self, engine: sa.Engine) -> sa.Engine:
        return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def users(self, engine: sa.Engine) -> list[str]:
        with engine.connect() as connection:
            found = connection.execute(sa.text(OTHERS)).all()
        return [f"{pid} at {address or 'this machine'}" for pid, address in found]

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
        copying = f"COPY {quote(table.name)} ({columns}) FROM STDIN"
        errors = connection.dialect.loaded_dbapi.Error
        try:
            with raw.cursor() as cursor, cursor.copy(copying) as copy:
                for row in rows:
                    copy.write_row(row)
        except errors as error:
            raise DBAPIError.instance(copying, None, error, errors) from error

    def upsert(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """One array a column: many times faster than a statement a row."""
        keys = [column.name for column in table.primary_key]
        last = {tuple(row[name] for name in keys): row for row in rows}.values()
        if last:
            arrays = []
            for column in table.columns:
                values = [row[column.name] for row in last]
                is_json = isinstance(column.type, JsonColumn)
                arrays.append([*map(write_json, values)] if is_json else values)
            connection.exec_driver_sql(_upsert(table), tuple(arrays))

    def now_ms(self, session: Session) -> int | None:
        seconds = sa.func.extract("epoch", sa.func.clock_timestamp())
        return session.scalar(sa.select(sa.cast(sa.func.floor(seconds * 1000), sa.BigInteger)))

    def lock(self, connection: sa.Connection, lock: NamedLock) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock.number)))

    def try_lock(self, connection: sa.Connection, lock: NamedLock) -> bool:
        return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(lock.number))))

    def among(self, column: Any, numbers: Sequence[int]) -> sa.ColumnElement[bool]:
        """As one array: a variable for each number takes it longer than the rows."""
        return column == sa.func.any(sa.literal([*numbers], sa.ARRAY(sa.BigInteger)))

    def after_migration(self, connection: sa.Connection) -> None:
        """Texts are sorted by their code points, as in SQLite, whatever the server's language."""
        sorted_otherwise = connection.execute(
            sa.text(
                "SELECT table_name, column_name FROM information_schema.columns"
                " WHERE table_schema = current_schema() AND data_type = 'character varying'"
                " AND collation_name IS DISTINCT FROM 'C'"
            )
        ).all()
        quote = connection.dialect.identifier_preparer.quote
        for table, column in sorted_otherwise:
            change = f'ALTER COLUMN {quote(column)} TYPE VARCHAR COLLATE "C"'
            connection.exec_driver_sql(f"ALTER TABLE {quote(table)} {change}")

    def version(self, engine: sa.Engine) -> str:
        with engine.connect() as connection:
            return str(connection.scalar(sa.text("SHOW server_version")))

    def bytes(self, engine: sa.Engine) -> int:
        with engine.connect() as connection:
            here = sa.func.pg_database_size(sa.func.current_database())
            return int(connection.execute(sa.select(here)).scalar_one())

    def count_on(self, connection: sa.Connection, tables: sa.MetaData) -> None:
        for table in tables.sorted_tables:
            number = table.autoincrement_column
            if number is None:
                continue
            sequence = sa.func.pg_get_serial_sequence(table.name, number.name)
            if connection.scalar(sa.select(sequence)):
                largest = sa.select(sa.func.max(number)).scalar_subquery()
                following = sa.func.greatest(sa.func.coalesce(largest, 0) + 1, 1)
                connection.execute(sa.select(sa.func.setval(sequence, following, False)))


@cache
def _upsert(table: sa.Table) -> str:
    """The statement that is given an array of each column."""
    dialect = postgresql.dialect()
    quote = dialect.identifier_preparer.quote
    kinds = [column.type.compile(dialect) for column in table.columns]
    arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
    names = ", ".join(quote(column.name) for column in table.columns)
    keys = ", ".join(quote(column.name) for column in table.primary_key)
    others = [quote(column.name) for column in table.columns if not column.primary_key]
    changed = ", ".join(f"{name} = excluded.{name}" for name in others)
    return (
        f"INSERT INTO {quote(table.name)} ({names}) SELECT * FROM unnest({arrays})"
        f" ON CONFLICT ({keys}) DO UPDATE SET {changed}"
    )


def _tune_postgres(connection: Any, _record: Any) -> None:
    """Settings of a session on the server: as long waits for locks as in SQLite; a client that is
    frozen or gone holds nobody up; texts that this program understands."""
    settings = {
        "lock_timeout": BUSY_MS,
        "idle_in_transaction_session_timeout": 60_000,  # ms, of a client that does nothing
        "tcp_keepalives_idle": SILENT_S,
        "tcp_keepalives_interval": ASK_AGAIN_S,
        "tcp_keepalives_count": ASK_TIMES,
        "tcp_user_timeout": 1000 * GONE_S,  # keepalive is silent where an answer is under way
        "jit": "off",  # compiling our statements takes longer than they do
    }
    statements = [f"SET {name} = {value}" for name, value in settings.items()]
    with closing(connection.cursor()) as cursor:
        cursor.execute("; ".join(statements))
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    connection.commit()


def _say_away(context: sa.ExceptionContext) -> None:
    """Let an `OperationalError` say that the database is away, however the driver calls it."""
    state = getattr(context.original_exception, "sqlstate", None)
    away = context.is_disconnect or state == READ_ONLY
    if away and not isinstance(context.sqlalchemy_exception, OperationalError):
        original = context.original_exception
        context.chained_exception = OperationalError(
            context.statement, context.parameters, original, connection_invalidated=True
        )
