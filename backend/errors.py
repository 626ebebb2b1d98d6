"""One tree of errors. `field` names the form field that holds the bad value, so that the screen can
show the message beside it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class SlimscopeError(Exception):
    """Base of every error a person may see: one sentence each for what happened, why, and what to
    do. `field`: the config field at fault, where there is one. `others`: further errors of the same
    config, a field each."""

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
    """The computation failed (not finite, not positive definite, out of memory)."""


class BackupError(SlimscopeError):
    """A backup that cannot be written, read or restored."""


class ForbiddenError(SlimscopeError):
    """The user lacks permission."""


class RateLimitError(SlimscopeError):
    """The user has sent too many requests."""


class OverloadError(RateLimitError):
    """So many requests wait already, `before` this one, that it is refused for about
    `retry_after_s` seconds."""

    def __init__(
        self,
        what: str,
        why: str = "",
        do: str = "",
        field: str | None = None,
        *,
        retry_after_s: float,
        before: int,
    ) -> None:
        super().__init__(what, why, do, field)
        self.retry_after_s, self.before = retry_after_s, before


class ConflictError(SlimscopeError):
    """The state of the run does not allow this operation."""


class NotFoundError(SlimscopeError):
    """No run, tensor or artifact of that name."""


@contextmanager
def for_field(field: str, kind: type[SlimscopeError] = SlimscopeError) -> Iterator[None]:
    """Raise errors of the body for this form field: a shared check does not know every config."""
    try:
        yield
    except kind as error:
        raise type(error)(error.what, error.why, error.do, field) from error


class CancelledError(Exception):
    """Raised at a safe point after a cancellation request, not a failure; checkpoints are kept."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or the one that caused it, means that no space was left on the disk.
    Safetensors and SQLite say so in words only."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    said = any(words in str(error) for words in ("No space left on device", "disk is full"))
    return full or said or is_disk_full(error.__cause__ or error.__context__)
