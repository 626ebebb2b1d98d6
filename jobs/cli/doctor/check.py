"""One finding of the doctor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at. `fix`: what to do about it, a command or a setting; "" if there
    is nothing to do."""

    name: str
    ok: bool
    text: str
    fix: str = ""


def check(name: str, ok: bool, text: str, fix: str) -> HealthCheck:
    """A finding whose fix is shown only where something is wrong."""
    return HealthCheck(name, ok, text, "" if ok else fix)
