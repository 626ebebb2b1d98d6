"""A test cannot cut the power, and so not tell whether anything was flushed to the disk: nobody
waits for that, which is most of what a short transaction takes."""

import os
import sqlite3

from backend.store.dialects import sqlite

tune = sqlite._configure_connection


def tune_without_flushing(connection: sqlite3.Connection, record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")  # before the file is made
    tune(connection, record)
    connection.execute("PRAGMA synchronous=OFF")


def flush_nothing() -> None:
    """In this process, and in those that are forked from it."""
    os.fsync = lambda _: None
    sqlite._configure_connection = tune_without_flushing
    sqlite.SQLite._synchronous = lambda *_: None
