"""The gate in tests: nothing was asked yet, and limits of a test's own."""

import pytest

from backend.queue import gate
from backend.queue.gate import Rate

RATES = ("changes", "previews", "answers", "logins")


def nothing_asked(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """No test spends what another may ask for in a minute."""
    for name in names or RATES:
        monkeypatch.setattr(gate, name, Rate(getattr(gate, name).limit))
