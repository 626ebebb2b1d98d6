"""The user behind a request: a host, or a guest with or without a name."""

import logging
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from backend.errors import SlimscopeError
from backend.printable import one_line

GUEST = "guest-"  # name prefix of guests that can be identified
ALIAS_LETTERS = 40
log = logging.getLogger("slimscope.refused")

E = TypeVar("E", bound=SlimscopeError)


@dataclass(frozen=True)
class Actor:
    """The user behind a request. `client`: network address; "" on the local command line. `alias`:
    the name a guest gave themselves, which proves nothing. `is_new`: the name was made for this
    very request, which came without a cookie."""

    name: str
    role: Literal["host", "guest"] = "guest"
    client: str = ""
    alias: str = ""
    is_new: bool = False

    @property
    def signature(self) -> str:
        """Name and alias, as stored with what they do."""
        return f"{self.name} {self.alias}".strip()


def guest_name(network: str, guest: str) -> str:
    """The name of a guest, from the ids of their network address and of themselves."""
    return f"{GUEST}{network}-{guest}"


def guest_of(owner: str) -> str:
    """The name in a signature, without the alias."""
    return owner.partition(" ")[0]


def network_of(owner: str) -> str:
    """The id of the network address in the signature of a guest."""
    return guest_of(owner).removeprefix(GUEST).rpartition("-")[0]


def with_alias(actor: Actor, text: str) -> Actor:
    """A guest with an alias: one line of up to `ALIAS_LETTERS` printable characters."""
    if actor.role == "host" or not actor.name.startswith(GUEST):
        return actor
    return replace(actor, alias=one_line(text)[:ALIAS_LETTERS].strip())


def is_unnamed(actor: Actor) -> bool:
    """Return True if this guest is indistinguishable from others at the same address."""
    return actor.role == "guest" and not actor.name.startswith(GUEST)


def reject(user: str, error: E) -> E:
    """Log a rejected request with its user, and return the error to raise."""
    log.warning("%r: %s", user, " ".join(part for part in (error.what, error.why) if part))
    return error
