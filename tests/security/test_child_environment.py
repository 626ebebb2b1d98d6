"""Environment variables of the supervisor and of jobs."""

import subprocess
import sys
from pathlib import Path

import pytest

from backend.queue import service
from backend.queue.launcher import child_environment, job_environment, submission_variables
from backend.settings import settings
from backend.store import queries
from tests.queue.conftest import HOST, queue

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
