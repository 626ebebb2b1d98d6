"""Tests of the doctor's probe: a test job sent to a server that answers like a Ray head."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.queue.engines import ray
from backend.queue.engines.ray import RayEngine, RayHead
from backend.settings import settings
from jobs.cli.doctor import cluster, node
from tests.conftest import Given
from tests.queue.engines.ray_head import TOKEN, Head, ray_head
from tests.queue.scripted_engine import ScriptedEngine


class Machine:
    """Runs the jobs of a head in a separate environment."""

    def __init__(self, head: Head, environment: dict[str, str]) -> None:
        self.head, self.told, self.ran = head, environment, list[str]()
        self._submit = head._submit
        head._submit = self.carry_out

    def carry_out(self, body: dict) -> tuple[int, object]:
        answer = self._submit(body)
        self.ran.append(body["entrypoint"])
        variables = {**os.environ, **body["runtime_env"]["env_vars"], **self.told}
        ended = subprocess.run(["sh", "-c", body["entrypoint"]], env=variables, capture_output=True)
        status = "FAILED" if ended.returncode else "SUCCEEDED"
        self.head.end(body["submission_id"], status, ended.returncode, ended.stderr.decode())
        return answer


@pytest.fixture
def engine(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Head, RayEngine]]:
    monkeypatch.setattr(ray, "HEAD_TIMEOUT_S", 60.0)  # of a busy machine
    monkeypatch.setattr(cluster, "POLL_S", 0.01)
    monkeypatch.setattr(cluster, "FILE_DELAY_S", 0.1)
    with ray_head() as (head, address):
        yield head, RayEngine(RayHead(address, TOKEN), 1, 0, 20.0)


@pytest.fixture(params=["folder", "store"])
def shared(request: pytest.FixtureRequest, data_dir: Path, given: Given) -> dict[str, str]:
    """Return the artifact setting of this machine, and the environment that shares it with
    another."""
    location = str(data_dir.parent / "shared")
    location = f"file://{location}" if request.param == "store" else location
    given(ARTIFACTS=location)
    return {"SLIMSCOPE_PYTHON": sys.executable, "SLIMSCOPE_ARTIFACTS": location}


def test_a_machine_says_its_versions_and_its_file_is_seen(
    engine: tuple[Head, RayEngine], shared: dict[str, str], data_dir: Path
) -> None:
    head, there = engine
    machine = Machine(head, {**shared, "SLIMSCOPE_DATA_DIR": str(data_dir.parent / "other")})
    result = cluster.send(there)
    assert result.ok, result
    assert f"torch {node.versions()['torch']}" in result.text and "its file arrived" in result.text
    assert "jobs.cli.doctor.node of-the-doctor-" in machine.ran[0]
    assert head.jobs == {} and [*(data_dir.parent / "shared").iterdir()] == []


def test_a_machine_whose_artifacts_are_elsewhere_is_told(
    engine: tuple[Head, RayEngine], tmp_path: Path
) -> None:
    head, there = engine
    elsewhere = {"SLIMSCOPE_ARTIFACTS": str(tmp_path / "elsewhere")}
    Machine(head, {"SLIMSCOPE_PYTHON": sys.executable, **elsewhere})
    result = cluster.send(there)
    assert not result.ok and "not visible" in result.text and "SLIMSCOPE_ARTIFACTS" in result.fix
    assert head.jobs == {}


def test_a_machine_without_slimscope_is_told(engine: tuple[Head, RayEngine]) -> None:
    head, there = engine
    Machine(head, {"SLIMSCOPE_PYTHON": "false"})
    result = cluster.send(there)
    assert not result.ok and "exit code 1" in result.text and "SLIMSCOPE_PYTHON" in result.fix


def test_a_head_that_refuses_is_told(engine: tuple[Head, RayEngine]) -> None:
    head, there = engine
    head.fails = 500
    assert "not started" in cluster.send(there).text


def test_another_version_there_and_a_job_that_waits_for_ever(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, key = ScriptedEngine(remote=True), "of-the-doctor-1"
    monkeypatch.setattr(cluster, "PROBE", key)
    monkeypatch.setattr(cluster, "PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(engine, "kill", lambda ref: engine.launched.remove(ref["id"]))
    result = cluster.send(engine)
    assert not result.ok and "did not finish" in result.text and engine.launched == []
    old = {"host": "gpu-1", "versions": {**node.versions(), "torch": "1.0"}}
    settings().artifacts.mkdir(parents=True)
    (settings().artifacts / key).write_text(json.dumps(old))
    result = cluster.send(engine)
    assert not result.ok and "gpu-1 has" in result.text and "torch 1.0" in result.text
    assert not (settings().artifacts / key).exists()


def test_on_one_machine_nothing_is_sent(data_dir: Path) -> None:
    assert cluster.probe().ok and cluster.probe().text == "runs start on this machine"
