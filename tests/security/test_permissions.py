"""File permissions of the data folder."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from backend.settings import settings
from backend.store.migrate import upgrade
from backend.store.session import engine_for
from jobs.cli.app import main
from ui import app as pages


@pytest.fixture(autouse=True)
def _loose() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)
    engine_for.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do everything that `python app.py` does, except serving."""
    monkeypatch.setenv("SLIMSCOPE_PORT", "0")
    settings.cache_clear()
    for name in ("throttle_logs", "raise_file_limit", "keep_supervised"):
        monkeypatch.setattr(app, name, lambda *_: None)
    monkeypatch.setattr(pages, "serve", lambda _: None)
    app.main()


def test_a_shared_dashboard_takes_an_old_folder_from_other_users(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade()
    assert (mode(data_dir), mode(data_dir / "results.db")) == (0o755, 0o644)
    monkeypatch.setenv("SLIMSCOPE_HOST_TOKEN", "a-token-for-the-tests")
    start_dashboard(monkeypatch)
    assert mode(data_dir) == 0o700
    assert {mode(file) for file in data_dir.glob("results.db*")} == {0o600}
    (data_dir / "later.txt").write_text("a log")
    assert mode(data_dir / "later.txt") == 0o600


def test_a_folder_that_is_new_is_private_from_the_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_HOST_TOKEN", "a-token-for-the-tests")
    monkeypatch.setattr(sys, "argv", ["slimscope", "doctor"])
    with pytest.raises(SystemExit, match=r"[01]"):
        main()
    assert (mode(data_dir), mode(data_dir / "results.db")) == (0o700, 0o600)


def test_a_dashboard_of_ones_own_keeps_the_permissions_of_its_user(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_dashboard(monkeypatch)
    assert mode(data_dir) == 0o755


def test_a_folder_of_another_user_is_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbid(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("SLIMSCOPE_HOST", "0.0.0.0")
    monkeypatch.setattr(Path, "chmod", forbid)
    start_dashboard(monkeypatch)
    assert any(str(data_dir) in text and "not permitted" in text for text in caplog.messages)
