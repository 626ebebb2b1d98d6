"""Tests of the doctor: problems and their fixes."""

import json
import shutil
from pathlib import Path

import pytest

from backend.kernels.library import library
from backend.models.sources.cache import prepare_once
from backend.queue.engines import local
from backend.queue.launcher import SUPERVISOR
from backend.queue.service import enqueue
from backend.settings import settings
from backend.store.copies import IntegrityResult, copy_daily
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Event, Job
from jobs.cli.doctor import cluster, machine, node
from jobs.cli.doctor.machine import HealthCheck
from jobs.cli.server import examine
from tests.conftest import Given
from tests.queue.conftest import HOST
from tests.queue.engines.ray_head import TOKEN, ray_head
from tests.rows import change
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


def test_the_command_prints_the_fix_and_fails(queue: Path) -> None:
    (settings().artifacts / "sds-0099").mkdir(parents=True)
    completed = slimscope("doctor")
    assert (
        completed.returncode == 1
        and "LOOK artifacts" in completed.stdout
        and "-> Delete" in completed.stdout
    )
    checks = {c["name"]: c for c in json.loads(slimscope("doctor", "--json").stdout)}
    assert checks["models"]["ok"] and "toy" in checks["models"]["text"]
    assert checks["artifacts"]["fix"]


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
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(local, "DEVICE_FOLDER", tmp_path)
    assert machine.device().ok
    (tmp_path / "nvidia0").touch()
    assert wrong(machine.device(), "1 GPU installed", "CUDA")


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
