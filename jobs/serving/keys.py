"""API keys. A program with a key may use `/v1` like a host, and nothing else. Only hashes are
stored; a key is shown once, when it is created."""

import hashlib
import re
import secrets

from sqlalchemy import select, update

from backend.errors import ConfigError, ConflictError, NotFoundError
from backend.queue.actor import Actor
from backend.queue.permissions import require_host
from backend.store.session import change, fetched, fetched_value, now_ms, writing
from backend.store.tables import ApiKey

PREFIX = "slim-"
NAME = re.compile(r"[\w.\-]{1,40}")


def create_key(name: str, actor: Actor) -> str:
    """Create a key and return it. Raises ConfigError: invalid name; ConflictError: the name has
    been used before."""
    require_host(actor, "create a key")
    if not NAME.fullmatch(name):
        raise ConfigError(
            "The name was not accepted.", "A name has 1 to 40 letters, digits or . - _", "", "name"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    with writing(durable=True) as session:
        if session.get(ApiKey, name):
            raise ConflictError(
                "The key was not created.",
                f"The name {name} is or was used by another key.",
                "Choose another name.",
            )
        session.add(ApiKey(name=name, sha256=_hash(key), created_at=now_ms()))
    return key


def all_keys() -> list[ApiKey]:
    """All keys, revoked ones included, in order of creation."""
    return fetched(select(ApiKey).order_by(ApiKey.created_at, ApiKey.name))


def revoke_key(name: str, actor: Actor) -> None:
    """Revoke a key; requests that it has sent are still answered. Raises NotFoundError: there is no
    valid key of this name."""
    require_host(actor, "revoke a key")
    statement = update(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
    with writing(durable=True) as session:
        if not change(session, statement.values(revoked_at=now_ms())):
            raise NotFoundError(f"There is no valid key called {name[:40]!r}.")


def key_name(key: str) -> str:
    """Return the name of a valid key; "" for any other text. The key is looked up by its hash, so
    that timing reveals nothing about it."""
    if not key.startswith(PREFIX):
        return ""
    query = select(ApiKey.name).where(ApiKey.sha256 == _hash(key), ApiKey.revoked_at.is_(None))
    return fetched_value(query) or ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
