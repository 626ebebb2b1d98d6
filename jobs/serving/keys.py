"""API keys: with one, a program uses `/v1` as a host does, and nothing else. Only hashes are
stored; a key is shown once, when it is made."""

import hashlib
import re
import secrets

from sqlalchemy import select, update

from backend.errors import ConfigError, ConflictError, NotFoundError
from backend.queue.actor import Actor
from backend.queue.permissions import require_host
from backend.store.session import change, fetched, now_ms, reading, writing
from backend.store.tables import ApiKey

PREFIX = "slim-"
NAME = re.compile(r"[\w.\-]{1,40}")


def create_key(name: str, actor: Actor) -> str:
    """A new key of that name."""
    require_host(actor, "make a key")
    if not NAME.fullmatch(name):
        raise ConfigError(
            "The name was not accepted.", "It has 1 to 40 letters, digits or . - _", "", "name"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    with writing(durable=True) as session:
        if session.get(ApiKey, name):
            raise ConflictError(
                "The key was not made.",
                f"There was a key called {name} before.",
                "Choose another name.",
            )
        session.add(ApiKey(name=name, sha256=_hash(key), created_at=now_ms()))
    return key


def all_keys() -> list[ApiKey]:
    return fetched(select(ApiKey).order_by(ApiKey.created_at, ApiKey.name))


def revoke_key(name: str, actor: Actor) -> None:
    """End a key; the requests it has sent go on."""
    require_host(actor, "revoke a key")
    ended = update(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))
    with writing(durable=True) as session:
        if not change(session, ended.values(revoked_at=now_ms())):
            raise NotFoundError(f"There is no valid key called {name[:40]!r}.")


def key_name(key: str) -> str:
    """The name of a valid key; "" for any other text. The hash is looked up, so that the time it
    takes tells nothing of the key."""
    if not key.startswith(PREFIX):
        return ""
    known = select(ApiKey.name).where(ApiKey.sha256 == _hash(key), ApiKey.revoked_at.is_(None))
    with reading() as session:
        return session.scalar(known) or ""


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
