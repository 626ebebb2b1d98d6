"""Errors that name the field to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backend.errors import SlimscopeError


@contextmanager
def refusal(
    field: str | None, *parts: str, error: type[SlimscopeError] = SlimscopeError
) -> Iterator[None]:
    """Expect an error beside this field that says what happened, with these parts."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.field == field and caught.value.what
    for part in parts:
        assert part in str(caught.value)
