"""One tree of errors. Each says what happened, why, and what to do; `field` names the form field
that holds the bad value, so that the screen can show the message beside it."""

from __future__ import annotations

from typing import TypeVar


class SlimscopeError(Exception):
    """Base of every error a person may see.

    Args:
        what: what happened, one sentence.
        why: the cause, one sentence.
        do: what the reader can do about it, one sentence.
        field: the config field at fault, where there is one.

    Attributes:
        others: what else is wrong with the same config, a field each.
    """

    others: tuple[SlimscopeError, ...] = ()

    def __init__(self, what: str, why: str = "", do: str = "", field: str | None = None) -> None:
        self.what, self.why, self.do, self.field = what, why, do, field
        super().__init__(" ".join(part for part in (what, why, do) if part))


E = TypeVar("E", bound=SlimscopeError)


class ConfigError(SlimscopeError):
    """A config that cannot be carried out; found before the work starts."""


class ModelError(SlimscopeError):
    """A model that is not there, not readable, or of a shape no method here can treat."""


class DatasetError(SlimscopeError):
    """A corpus that is not there, too short, or that would leak into the evaluation."""


class ComputeError(SlimscopeError):
    """The computation itself could not go on (not finite, not positive definite, out of memory)."""


class ForbiddenError(SlimscopeError):
    """The person asking may not do this."""


class RateLimitError(SlimscopeError):
    """The person asking has to wait a little."""


class ConflictError(SlimscopeError):
    """A run that is not in a state in which this can be done to it."""


class NotFoundError(SlimscopeError):
    """No run, tensor or artefact of that name."""


def for_field(error: E, field: str) -> E:
    """The same error, for another form field: a shared check does not know every config."""
    return type(error)(error.what, error.why, error.do, field)


class CancelledError(Exception):
    """A request that was honoured, not an error: raised at a safe point, all checkpoints kept."""
