"""File permissions of the data folder; environment variables of the supervisor and of jobs."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from backend.queue import service
from backend.queue.launcher import child_environment, job_environment, submission_variables
from backend.settings import settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import engine_for
from jobs.cli import server
from jobs.cli.app import main
from tests.conftest import Given
from tests.queue.conftest import HOST, queue
from ui import app as pages


@pytest.fixture(autouse=True)
def _loose(given: Given) -> Iterator[None]:
    given(PORT="0", EXAMPLES="false")
    before = os.umask(0o022)
    yield
    os.umask(before)
    engine_for.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do everything that `python app.py` does, except serving."""
    for name in ("throttle_logs", "raise_file_limit", "keep_supervised"):
        monkeypatch.setattr(app, name, lambda *_: None)
    monkeypatch.setattr(pages, "serve", lambda _: None)
    app.main()


def test_a_shared_dashboard_takes_an_old_folder_from_other_users(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    upgrade()
    assert (mode(data_dir), mode(data_dir / "results.db")) == (0o755, 0o644)
    given(HOST_TOKEN="a-token-for-the-tests")
    start_dashboard(monkeypatch)
    assert mode(data_dir) == 0o700
    assert {mode(file) for file in data_dir.glob("results.db*")} == {0o600}
    (data_dir / "later.txt").write_text("a log")
    assert mode(data_dir / "later.txt") == 0o600


def test_a_folder_that_is_new_is_private_from_the_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMSCOPE_HOST_TOKEN", "a-token-for-the-tests")
    monkeypatch.setattr(server, "CHECKS", server.CHECKS[:1])
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


# child environment --------------------------------------------------------------------------------


__all__ = ["queue"]


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


def test_a_job_gets_those_of_its_submission(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/mine")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    job = service.enqueue("count", {}, HOST)
    monkeypatch.setenv("HF_HOME", "/of/the/supervisor")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    stored = queries.job(job.id).environment
    environment, missing = job_environment(stored["settings"], stored["variables"])
    assert (environment["HF_HOME"], environment["CUDA_VISIBLE_DEVICES"]) == ("/mine", "1")
    assert "HF_HUB_OFFLINE" not in environment and missing == []


def test_no_token_is_stored_nor_anothers_used(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    submitted = submission_variables()
    assert "hf_mine" not in str(submitted)
    assert job_environment({}, submitted)[0]["HF_TOKEN"] == "hf_mine"
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    environment, missing = job_environment({}, submitted)
    assert "HF_TOKEN" not in environment and missing == ["HF_TOKEN"]
    monkeypatch.delenv("HF_TOKEN")
    without = submission_variables()
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    environment, missing = job_environment({}, without)
    assert "HF_TOKEN" not in environment and missing == []
    assert job_environment({}, {})[0]["HF_TOKEN"] == "hf_of_somebody_else"  # a job of before


def test_no_progress_bar_fills_the_log(data_dir: Path) -> None:
    code = "from tqdm.auto import tqdm; import sys; [*tqdm(range(3), file=sys.stdout)]"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")
