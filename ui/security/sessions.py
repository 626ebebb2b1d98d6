"""Sessions of hosts who logged in with the token. They are kept in memory: a restart ends them."""

import secrets
import time
from dataclasses import dataclass

DAY = 86_400.0  # seconds
MAX_IDLE = 7 * DAY  # an open page asks every 10 s
MAX_AGE = 30 * DAY


@dataclass
class HostSession:
    """One login."""

    # from where it came: browsers send a cookie to every port of a machine, and who listens there
    # must not be able to use it from elsewhere
    origin: str
    started: float  # seconds of a monotonic clock
    used: float

    @property
    def expired(self) -> bool:
        now = time.monotonic()
        return now - self.used > MAX_IDLE or now - self.started > MAX_AGE


class SessionStore:
    """The sessions of this process, by their random ids."""

    def __init__(self) -> None:
        self._sessions: dict[str, HostSession] = {}

    def start(self, origin: str) -> str:
        """The id of a new session; expired ones are forgotten."""
        for old in [key for key, session in self._sessions.items() if session.expired]:
            self.end(old)
        session_id, now = secrets.token_urlsafe(32), time.monotonic()
        self._sessions[session_id] = HostSession(origin, now, now)
        return session_id

    def use(self, session_id: str, origin: str) -> bool:
        """Whether the session is valid for requests from there; keeps it from becoming idle."""
        session = self._sessions.get(session_id)
        if session is None or session.expired or session.origin != origin:
            return False
        session.used = time.monotonic()
        return True

    def end(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
