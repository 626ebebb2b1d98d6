"""Tests of the doctor: problems and their fixes, and a test job sent to a server that answers like
a Ray head."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.kernels.library import library
from backend.models import cards
from backend.models.cards import Card, CardReport
from backend.models.sources.cache import prepare_once
from backend.queue.engines import local, ray
from backend.queue.engines.ray import RayEngine, RayHead
from backend.queue.launcher import SUPERVISOR
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store.copies import IntegrityResult, copy_daily
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Event, Job
from jobs.cli.doctor import cluster, machine, node
from jobs.cli.doctor.gpu import trial
from jobs.cli.doctor.machine import HealthCheck
from jobs.cli.server import examine
from tests.conftest import Given
from tests.queue.conftest import HOST, change
from tests.queue.engines.ray_head import TOKEN, Head, ray_head
from tests.queue.scripted_engine import ScriptedEngine
from tests.shell import slimscope


def wrong(result: HealthCheck, *parts: str) -> bool:
    """Return True if a check failed with these words in its text and its fix."""
    return not result.ok and all(part in f"{result.text} {result.fix}" for part in parts)


def test_a_new_data_folder_is_in_order(queue: Path, given: Given, tmp_path: Path) -> None:
    library()  # the decoder is built once for all tests
    shutil.copytree(settings().cache_dir / "native", tmp_path / "cache" / "native")
    given(CACHE_DIR=str(tmp_path / "cache"))
    results = examine()
    assert [result.name for result in results if not result.ok] == []
    assert not any(result.fix for result in results)


def test_the_command_prints_the_fix_and_fails(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # of the terminal that the pipe begins in
    (settings().artifacts / "sds-0099").mkdir(parents=True)
    completed = slimscope("doctor")
    assert completed.returncode == 1
    assert "LOOK artifacts" in completed.stdout and "-> Delete" in completed.stdout
    lines = completed.stdout.splitlines()
    assert {line[:5] for line in lines} <= {"ok   ", "LOOK ", "     "}
    assert any(line.startswith("ok   models") and "toy" in line for line in lines)


def test_a_shared_folder_that_others_can_read(queue: Path, given: Given) -> None:
    assert machine.privacy().ok
    given(HOST_TOKEN="a-token-for-the-tests")
    queue.chmod(0o755)
    assert wrong(machine.privacy(), str(queue), "chmod -R go=")
    for path in (queue, *queue.glob("results.db*")):
        path.chmod(0o700 if path == queue else 0o600)
    assert machine.privacy().ok


@pytest.mark.sqlite("its copies")
def test_a_damaged_database_and_its_copies(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none yet" in machine.copies().text
    copy = copy_daily()
    assert copy is not None and copy.name in machine.copies().text
    damaged = IntegrityResult(0, ["page 3 is never used"])
    monkeypatch.setattr(machine, "check_integrity", lambda: damaged)
    assert wrong(machine.integrity(), "page 3", f"slimscope restore backups/{copy.name}")


def test_a_server_whose_clock_is_another(
    on_server: str, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.database_version().ok and machine.database_version().name == "PostgreSQL"
    assert "pg_dump" in machine.integrity().text and machine.copies().ok
    monkeypatch.setattr(machine, "now_ms", lambda: now_ms() + 5000)
    assert wrong(machine.database_version(), "differs by 5", "timedatectl")


def test_a_server_that_does_not_answer_is_named_without_its_password(
    on_server: str, data_dir: Path, given: Given
) -> None:
    given(DATABASE_URL="postgresql+psycopg://me:secret@127.0.0.1:1/slimscope")
    completed = slimscope("doctor")
    assert completed.returncode == 2 and "secret" not in completed.stderr
    assert "at postgresql+psycopg://me:***@127.0.0.1:1/slimscope cannot be used" in completed.stderr


def test_a_gpu_that_torch_cannot_use(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "The NVIDIA driver on your system is too old"
    monkeypatch.setattr(cards, "report", lambda: CardReport(reason=reason))
    monkeypatch.setattr(local, "DEVICE_FOLDER", tmp_path)
    assert machine.device().ok
    (tmp_path / "nvidia0").touch()
    assert wrong(machine.device(), "1 GPU installed", reason, "CUDA")
    assert trial()[0].text == reason and not trial()[0].ok
    found = CardReport(cards=(Card(device="cuda:0", name="NVIDIA A1", uuid="", total_bytes=1),))
    monkeypatch.setattr(cards, "report", lambda: found)
    assert machine.device().ok and "NVIDIA A1" in machine.device().text


def test_a_clock_that_was_set_back(queue: Path) -> None:
    job = enqueue("count", {"steps": 1}, HOST)
    assert machine.clock().ok
    with writing() as session:
        session.add(Event(job_id=job.id, at=now_ms() + 7_200_000, type="x", actor="y"))
    assert wrong(machine.clock(), "set back", "timedatectl")


def test_a_model_in_the_cache_that_was_cut(queue: Path, given: Given, tmp_path: Path) -> None:
    given(CACHE_DIR=str(tmp_path))

    def fill(draft: Path) -> None:
        (draft / "model.bin").write_text("x" * 9)

    folder = prepare_once("mine", 0, fill)
    assert machine.cached_models().ok
    (folder / "model.bin").write_text("x")
    assert wrong(machine.cached_models(), str(folder), "rm -r")


def test_a_supervisor_that_hangs_or_sleeps(queue: Path) -> None:
    lock = SUPERVISOR.try_lock()
    assert lock is not None and wrong(machine.supervisor(), "does not work", "fuser -k")
    lock.release()
    assert machine.supervisor().ok
    enqueue("count", {"steps": 1}, HOST)
    assert wrong(machine.supervisor(), "waiting runs: 1", "dashboard")


def test_a_cluster_that_answers_and_one_that_does_not(queue: Path, given: Given) -> None:
    assert cluster.engine().text == "runs start on this machine"
    own_url, url = settings().database_url, "postgresql+psycopg://db.lab.org/slimscope"
    with ray_head() as (_, address):
        given(ENGINE="ray", DATABASE_URL=url, RAY_TOKEN=TOKEN, RAY_ADDRESS=address)
        result = cluster.engine()
        assert result.ok and "Ray 2.60.0" in result.text and "room for 3" in result.text
        given(THREADS="8")
        assert wrong(cluster.engine(), "room for 0", "SLIMSCOPE_THREADS")
        given(RAY_TOKEN="of-another-cluster")
        assert wrong(cluster.engine(), "Unauthorized", "SLIMSCOPE_RAY_TOKEN")
    assert wrong(cluster.engine(), "does not answer")
    given(ENGINE="local", DATABASE_URL=own_url)


def test_machines_with_other_versions_are_named(queue: Path) -> None:
    assert cluster.nodes().ok
    job, local_versions = enqueue("count", {}, HOST), node.versions()
    for host, torch, is_other in (
        ("gpu-1", local_versions["torch"], False),
        ("gpu-2", "1.0", True),
    ):
        environment = {"host": host, "versions": {**local_versions, "torch": torch}}
        change(Job, job.id, state=State.SUCCEEDED, environment=environment)
        assert wrong(cluster.nodes(), "gpu-2 has torch 1.0") is is_other
    # as after an import or a restore
    change(Job, job.id, environment={"versions": local_versions})
    assert cluster.nodes().ok


def test_a_store_gives_back_what_it_takes(queue: Path, given: Given, tmp_path: Path) -> None:
    assert cluster.artifact_store().ok
    given(ARTIFACTS=f"file://{tmp_path}/store")
    assert cluster.artifact_store().ok and [*(tmp_path / "store").iterdir()] == []
    (tmp_path / "file").touch()
    given(ARTIFACTS=f"file://{tmp_path}/file/store")
    assert wrong(cluster.artifact_store(), "SLIMSCOPE_ARTIFACTS")
    given(ARTIFACTS="nothing://there")
    assert wrong(cluster.artifact_store(), "nothing")


def test_more_threads_than_cores(queue: Path, given: Given) -> None:
    given(THREADS="64", SLOTS="2")
    assert wrong(machine.threads(), "2 jobs with 64 threads", "SLIMSCOPE_THREADS=")


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


def python_in(folder: Path) -> str:
    """Return a command for this Python that has no spaces: the variable is split at them."""
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    command.chmod(0o700)
    return str(command)


@pytest.fixture(params=["folder", "store"])
def shared(request: pytest.FixtureRequest, data_dir: Path, given: Given) -> dict[str, str]:
    """Return the artifact setting of this machine, and the environment that shares it with
    another."""
    location = str(data_dir.parent / "shared")
    location = f"file://{location}" if request.param == "store" else location
    given(ARTIFACTS=location)
    return {"SLIMSCOPE_PYTHON": python_in(data_dir.parent), "SLIMSCOPE_ARTIFACTS": location}


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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SLIMSCOPE_ARTIFACTS", "/nowhere/elsewhere", "not visible"),
        ("SLIMSCOPE_PYTHON", "false", "exit code 1"),
    ],
)
def test_a_machine_with_other_artifacts_or_without_slimscope_is_told(
    engine: tuple[Head, RayEngine], tmp_path: Path, variable: str, value: str, said: str
) -> None:
    head, there = engine
    told = {"SLIMSCOPE_PYTHON": python_in(tmp_path)}
    Machine(head, told | {variable: value.replace("/nowhere", str(tmp_path))})
    result = cluster.send(there)
    assert not result.ok and said in result.text and variable in result.fix
    assert head.jobs == {}


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
