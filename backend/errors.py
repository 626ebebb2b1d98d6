"""The exception hierarchy. An error names the form field with the invalid value, so that the page
can show the message next to the field."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class SlimscopeError(Exception):
    """Base class of all errors shown to users. States in one sentence each what happened, why it
    happened, and what to do.

    Attributes:
        field: the invalid config field, if any.
        others: further errors of the same config, one per field.
    """

    others: "tuple[SlimscopeError, ...]" = ()

    def __init__(self, what: str, why: str = "", do: str = "", field: str | None = None) -> None:
        self.what, self.why, self.do, self.field = what, why, do, field
        super().__init__(" ".join(part for part in (what, why, do) if part))


class ConfigError(SlimscopeError):
    """An invalid config, detected before any work."""


class ModelError(SlimscopeError):
    """A model that is missing, unreadable or unsupported."""


class DatasetError(SlimscopeError):
    """A corpus that is missing, too short, or would leak into the evaluation."""


class ComputeError(SlimscopeError):
    """A failed computation (not finite, not positive definite, out of memory)."""


class BackupError(SlimscopeError):
    """A backup that cannot be written, read or restored."""


class ForbiddenError(SlimscopeError):
    """The user lacks permission."""


class RateLimitError(SlimscopeError):
    """The user has sent too many requests."""


class OverloadError(RateLimitError):
    """Too many requests are waiting.

    Attributes:
        retry_after_s: suggested seconds before the next try.
        requests_ahead: number of waiting requests ahead of this one.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        do: str = "",
        field: str | None = None,
        *,
        retry_after_s: float,
        requests_ahead: int,
    ) -> None:
        super().__init__(what, why, do, field)
        self.retry_after_s, self.requests_ahead = retry_after_s, requests_ahead


class ConflictError(SlimscopeError):
    """The state of the run does not allow this operation."""


class NotFoundError(SlimscopeError):
    """No run, tensor or artifact has that name."""


@contextmanager
def for_field(field: str, kind: type[SlimscopeError] = SlimscopeError) -> Iterator[None]:
    """Assign errors raised in the body to a form field. Shared checks do not know the names of
    config fields."""
    try:
        yield
    except kind as error:
        raise type(error)(error.what, error.why, error.do, field) from error


class CancelledError(Exception):
    """Raised at a safe point after a cancellation request. Not a failure: checkpoints are kept."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if the error or its cause means that the disk is full. Safetensors and SQLite
    report this only in their message."""
    if error is None:
        return False
    has_errno = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    has_message = any(
        phrase in str(error) for phrase in ("No space left on device", "disk is full")
    )
    return has_errno or has_message or is_disk_full(error.__cause__ or error.__context__)
