"""What supervisor and jobs find in their environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.queue.launcher import child_environment
from backend.settings import settings


@pytest.mark.parametrize("name", ["SLIMSCOPE_HOST_TOKEN", "slimscope_host_token"])
def test_the_token_is_for_the_dashboard_only(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    token = "a-token-no-run-needs"
    monkeypatch.setenv(name, token)
    monkeypatch.setenv("HF_HOME", "/models")
    settings.cache_clear()
    assert settings().host_token.get_secret_value() == token
    environment = child_environment()
    assert token not in environment.values()
    assert environment["HF_HOME"] == "/models"  # what the Hub, CUDA or Python need is passed on
