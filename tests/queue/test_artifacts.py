"""What runs keep in a store that all machines reach, and work that does not wait for it."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from backend.checkpoints import MANIFEST, Checkpoints, is_whole
from backend.queue import lifecycle, service
from backend.queue.artifacts import (
    COPY_TRIES,
    ArtifactStore,
    fetch_ended,
    fetch_log,
    fetch_work,
    key_of,
    log_file,
    read_log,
    remove_stored,
    run_folder,
    store,
    work_folder,
)
from backend.queue.launcher import child_environment
from backend.queue.removal import purge, remove
from backend.queue.supervisor import SupervisorLoop
from backend.queue.upkeep import fetch_logs, measure_ended
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import Exit, State
from backend.store.tables import Artifact
from jobs.fields.models import saved_model
from jobs.runtime import context as runtime
from jobs.runtime import main as process
from jobs.runtime import uploads
from jobs.runtime.context import SPOOL, claim
from jobs.runtime.uploads import Uploads
from jobs.submit import submit
from tests.conftest import Given
from tests.queue.conftest import HOST, Wait, process_of, running
from tests.queue.scripted_engine import ScriptedEngine
from tests.waiting import until


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[ArtifactStore]:
    yield ArtifactStore(f"memory://store/{tmp_path.name}")
    MemoryFileSystem.store.clear()


@pytest.fixture
def stored(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Given) -> Path:
    """A queue whose runs are stored; what stands for the store."""
    given(ARTIFACTS=f"file://{tmp_path}/store")
    monkeypatch.setattr(lifecycle, "RETRY_DELAYS_MS", {})
    return tmp_path / "store"


def checkpoint(root: Path, name: str, **texts: str) -> Path:
    with Checkpoints(root).write(name) as draft:
        for file, text in texts.items():
            (draft / file).write_text(text)
    return root / name


def test_the_newest_checkpoint_is_the_newest_as_copied(kept: ArtifactStore, tmp_path: Path) -> None:
    for name in ("step-9", "step-10"):
        kept.put_folder(checkpoint(tmp_path, name, a=name), f"run/{name}")
    for name in ("step-10", "step-9"):
        kept.get_folder(f"run/{name}", tmp_path / "there" / name)
    assert Checkpoints(tmp_path / "there").newest() == "step-10"


def test_the_manifest_comes_last_and_an_upload_that_stops_leaves_none(
    kept: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path, "one", a="1", b="2")
    assert not kept.get_folder("run/one", tmp_path / "there")
    assert kept.put_folder(folder, "run/one")
    folder = checkpoint(tmp_path, "one", a="3", b="4")
    really = kept.put_file

    def full(file: Path, key: str) -> None:
        if file.name == "b":
            raise OSError("no space")
        really(file, key)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(kept, "put_file", full)
        kept.put_folder(folder, "run/one")
    assert kept.manifest("run/one") is None and kept.size("run/one/a") == 1
    assert not kept.get_folder("run/one", tmp_path / "there")
    assert kept.put_folder(folder, "run/one") and kept.get_folder("run/one", tmp_path / "there")
    assert is_whole(tmp_path / "there") and (tmp_path / "there" / "a").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("part", ["a", MANIFEST])
def test_what_a_store_keeps_in_part_is_not_taken_for_stored(
    kept: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder, really = checkpoint(tmp_path, "one", a="12"), MemoryFileSystem.pipe_file

    def keep(self: object, path: str, value: bytes, **_: object) -> None:
        really(self, path, value[:1] if path.endswith(f"/{part}") else value)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="not stored completely"):
        patch.setattr(MemoryFileSystem, "pipe_file", keep)
        patch.setattr(MemoryFileSystem, "put_file", lambda *a, **_: keep(a[0], a[2], b"12"))
        kept.put_folder(folder, "run/one")
    assert not kept.get_folder("run/one", tmp_path / "there")
    assert kept.put_folder(folder, "run/one") and kept.get_folder("run/one", tmp_path / "there")


@pytest.mark.parametrize("times", [1, COPY_TRIES])
def test_what_comes_in_part_is_asked_for_again(
    kept: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    assert kept.put_folder(checkpoint(tmp_path, "one", a="12"), "run/one")
    cuts, really = iter(range(times)), kept.get_file

    def get(key: str, file: Path) -> None:
        really(key, file)
        if next(cuts, None) is not None:
            file.write_bytes(b"1")

    monkeypatch.setattr(kept, "get_file", get)
    assert kept.get_folder("run/one", tmp_path / "there") == (times < COPY_TRIES)
    assert (tmp_path / "there").exists() == (times < COPY_TRIES)


def test_a_store_that_answers_503_holds_a_run_up_and_ends_none(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    job, failing = submit("count", {"steps": 3, "pause": 0}, HOST), iter(range(3))
    SupervisorLoop(ScriptedEngine(slots=1)).turn()

    def answers(really: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*given: Any) -> Any:
            if next(failing, None) is not None:
                raise RuntimeError("503")  # as botocore's, which are no `OSError`
            return really(*given)

        return answer

    for name in ("names", "put_file"):
        monkeypatch.setattr(ArtifactStore, name, answers(getattr(ArtifactStore, name)))
    monkeypatch.setattr(runtime, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr(uploads, "MIN_RETRY_S", 0.01)
    context = claim(queries.attempts(job.id)[-1].id)
    assert process.execute(context) == Exit.DONE
    context.end_storing(has_succeeded=True)
    assert (stored / job.run / "work" / "step-2" / MANIFEST).exists()
    assert "The artifact store does not answer" in capfd.readouterr().out


def test_a_folder_that_is_replaced_during_its_upload_is_not_taken_for_whole(
    kept: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path, "one", a="1")
    really = kept.put_file

    def meanwhile(file: Path, key: str) -> None:
        really(file, key)
        checkpoint(tmp_path, "one", a="2")

    with monkeypatch.context() as patch:
        patch.setattr(kept, "put_file", meanwhile)
        assert not kept.put_folder(folder, "run/one")
    assert kept.manifest("run/one") is None


def test_work_goes_on_while_the_store_takes_nothing_and_a_run_waits_for_it_at_its_end(
    data_dir: Path, kept: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MIN_RETRY_S", 0.01)
    folder, said = settings().artifacts / "count-0001", list[str]()
    work = folder / "work"
    log = folder / "a1" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("begins\n")
    full = threading.Event()
    full.set()
    really = kept.put_file

    def put(file: Path, key: str) -> None:
        if full.is_set():
            raise OSError("no space")
        really(file, key)

    monkeypatch.setattr(kept, "put_file", put)
    ours = Uploads(kept, log, work / SPOOL, said.append)
    ours.start()
    (work / "done").mkdir(parents=True)
    checkpoints = Checkpoints(work, committed=ours.add)
    for name in ("one", "two", "one"):
        with checkpoints.write(name) as draft:
            (draft / "a").write_text(name)
    (work / SPOOL).write_text("a figure\n")
    until(lambda: bool(said))
    checkpoint(folder, "model", weights="w")
    ours.add_saved(folder, but=work)
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "SLOW_S", 0.0)
        assert not ours.wait(lambda: next(asked)) and is_whole(work / "two")
    assert said.pop().startswith("The run is waiting for the artifact store")
    full.clear()
    assert ours.wait(lambda: False)
    ours.close(10)
    assert said[-1] == "Uploads to the artifact store work again." and len(said) == 2
    there = [f"count-0001/{name}" for name in ("model", "work/one", "work/two")]
    assert all(kept.manifest(key) for key in there)
    assert kept.size("count-0001/a1/log.txt") == 7 and kept.size(f"count-0001/work/{SPOOL}") == 9


def test_a_run_goes_on_with_what_another_machine_has_stored(stored: Path, wait: Wait) -> None:
    job = submit("count", {"steps": 12}, HOST)
    wait(job.id, when=running(job.id, 3))
    there = stored / job.run / "work"
    until(lambda: (there / "step-1" / MANIFEST).exists())
    process_of(job.id).kill()
    shutil.rmtree(run_folder(job.run))  # which that machine has to itself
    wait(job.id, State.SUCCEEDED)
    first, second = queries.attempts(job.id)
    assert first.exit_code == -9 and second.resumed_from
    assert "Continuing from checkpoint" in read_log(job.run, 2)[0]
    shutil.rmtree(run_folder(job.run))
    measure_ended()  # by the supervisor, wherever it is
    assert "attempt 1" in log_file(job.run, 1).read_text()
    assert not work_folder(job.run).exists() and not there.exists()
    remove([job.run], HOST)
    purge([job.run], HOST)
    assert not (stored / job.run).exists()


def test_a_machine_goes_on_with_its_own_checkpoints_and_another_with_those_stored(
    stored: Path, tmp_path: Path
) -> None:
    kept, work = store(), work_folder("dlqat-0001")
    fetch_work("dlqat-0001", 1, SPOOL)
    kept.put_folder(checkpoint(work, "train-1", step="200"), key_of(work / "train-1"))
    checkpoint(work, "train-1", step="400")  # which was not stored before it was killed
    fetch_work("dlqat-0001", 2, SPOOL)
    assert (work / "train-1" / "step").read_text() == "400"
    fetch_work("dlqat-0001", 4, SPOOL)  # the third was on another machine
    assert (work / "train-1" / "step").read_text() == "200"


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_machine_of_a_cluster_keeps_nothing_that_succeeded(stored: Path, engine: str) -> None:
    job = submit("count", {"steps": 2, "pause": 0}, HOST)
    loop = SupervisorLoop(ScriptedEngine(slots=1, name=engine))
    loop.turn()
    context = claim(queries.attempts(job.id)[-1].id)
    assert process.execute(context) == Exit.DONE
    context.end_storing(has_succeeded=True)
    assert run_folder(job.run).exists() == (engine == "local")
    assert (stored / job.run / "work" / "step-1" / MANIFEST).exists()


def test_a_log_is_shown_while_its_run_works_elsewhere(
    stored: Path, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("count", {"steps": 1000}, HOST)
    wait(job.id, when=running(job.id))
    there = stored / job.run / "a1" / "log.txt"
    until(there.exists)
    with there.open("a") as file:
        file.write("and more\n")
    fetch_logs()
    assert read_log(job.run, 1)[0].endswith("and more\n")


def test_a_model_of_a_run_is_copied_where_it_is_used(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.enqueue("count", {}, HOST)
    folder = checkpoint(run_folder(job.run), "model", weights="w")
    key = key_of(folder)
    with writing() as session:
        session.add(Artifact(job_id=job.id, kind="model", path=key, bytes=1, created_at=1))
    assert store().put_folder(folder, key)
    shutil.rmtree(folder)
    assert saved_model(job.run)[0] == str(folder) and is_whole(folder)


def test_a_folder_of_artifacts_that_all_machines_share(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    monkeypatch.chdir(tmp_path)
    given(ARTIFACTS="shared")
    assert run_folder("sds-0001") == tmp_path / "shared" / "sds-0001" and store() is None
    assert child_environment()["SLIMSCOPE_ARTIFACTS"] == str(tmp_path / "shared")
    assert os.environ["SLIMSCOPE_ARTIFACTS"] == "shared"


def test_whatever_a_store_raises_ends_no_thread_of_the_supervisor(
    stored: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class EndpointError(Exception):
        pass

    def away(*_: object) -> None:
        raise EndpointError("no route")

    for name in ("names", "size", "remove"):
        monkeypatch.setattr(ArtifactStore, name, away)
    for act in (lambda: fetch_ended("sds-0001"), lambda: fetch_log("sds-0001", 1)):
        with pytest.raises(OSError, match="no route"):
            act()
    remove_stored(run_folder("sds-0001"))
    assert "sds-0001 stays in the store" in caplog.text
