"""The user behind a request: a host, or a guest with or without a name."""

import logging
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from backend.errors import SlimscopeError
from backend.printable import one_line

GUEST = "guest-"  # name prefix of guests with a cookie
ALIAS_LETTERS = 40
log = logging.getLogger("slimscope.refused")

E = TypeVar("E", bound=SlimscopeError)


@dataclass(frozen=True)
class Actor:
    """The user behind a request.

    Attributes:
        name: such as "host", "key laptop" or "guest-3f2a9c-5b1d0e77".
        role: permissions: a host may do everything.
        client: network address; "" on the local command line.
        alias: display name that a guest chose; it proves nothing.
        is_new: True if the name was created for this request, which came without a cookie.
    """

    name: str
    role: Literal["host", "guest"] = "guest"
    client: str = ""
    alias: str = ""
    is_new: bool = False

    @property
    def signature(self) -> str:
        """Name and alias, stored with runs, messages and votes of the user."""
        return f"{self.name} {self.alias}".strip()


def guest_name(network: str, guest: str) -> str:
    """Compose the name of a guest from the ids of its network address and of the guest."""
    return f"{GUEST}{network}-{guest}"


def guest_of(owner: str) -> str:
    """The guest name in a signature, without the alias."""
    return owner.partition(" ")[0]


def network_of(owner: str) -> str:
    """The id of the network address in a guest's signature."""
    return guest_of(owner).removeprefix(GUEST).rpartition("-")[0]


def with_alias(actor: Actor, text: str) -> Actor:
    """Set the alias of a guest: one line of up to `ALIAS_LETTERS` printable characters. Hosts and
    unnamed guests are returned unchanged."""
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
