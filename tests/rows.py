"""Rows as a test wants them."""

from typing import Any

from backend.store.session import writing


def change(table: type, key: Any, **values: Any) -> None:
    """Set columns of a stored row."""
    with writing() as session:
        row = session.get_one(table, key)
        for name, value in values.items():
            setattr(row, name, value)
