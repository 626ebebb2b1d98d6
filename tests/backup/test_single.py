"""A run moves into another data folder completely or not at all."""

import base64
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.backup import writing as layout
from backend.backup.reading import open_archive
from backend.backup.single import export_run, import_run
from backend.backup.writing import ROWS, RUN_FILE_ENTRIES, SourceFile, write_archive
from backend.errors import BackupError, ConflictError, ForbiddenError, NotFoundError
from backend.metric_key import MetricKey
from backend.queue import service
from backend.queue.actor import Actor
from backend.queue.artifacts import log_file, run_folder
from backend.queue.launcher import child_environment, launch_request
from backend.queue.service import enqueue
from backend.settings import settings
from backend.statistics.paired import WINDOW_LOSSES
from backend.statistics.tensors import TensorProfile
from backend.store import frames, queries, tensors
from backend.store.migrate import upgrade
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Artifact, Attempt, Job, MetricPoint, Result, Slot
from jobs.imported import check_row
from jobs.record import record
from jobs.reproduction import reproduce
from jobs.runtime.row_buffer import profile_row, upsert
from tests.backup.conftest import write_tar
from tests.plugins.job_kind import CountConfig
from tests.queue.conftest import HOST, change

Move = Callable[[Path], None]
Line = dict[str, Any]
OWN = (
    "id",
    "owner",
    "artifacts",
    "disk_bytes",
    "finished_at",
    "environment",
    "queued_at",
)  # of where it is


@pytest.fixture
def ended(queue: Path) -> Job:
    """A run with metrics, a profile and files, as its process would have left it."""
    times = {"created_at": 1, "queued_at": 1, "launched_at": 1, "started_at": 2, "ended_at": 3}
    enqueue("count", {"steps": 1}, HOST)  # so that numbers differ
    job = enqueue("count", CountConfig(steps=3).model_dump(mode="json"), HOST)
    files = ("a1/log.txt", "model/config.json", "model/model.safetensors", "work/left/x.bin")
    for name in files:
        file = run_folder(job.run) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("content")
    profile = TensorProfile("a.weight", 0, "a", "dense", "energy", np.arange(4.0))
    windows = TensorProfile("", -1, "", "dense", WINDOW_LOSSES, np.arange(3.0))
    key = asdict(MetricKey("count"))
    points = [key | {"step": n, "at": n, "value": n / 2} for n in range(3)]
    named = {"stage": "run", "family": "total", "series": ""}
    figure = named | {"value": 3.0, "details": {"of": "3"}}
    with writing() as session:
        rows = [(MetricPoint, {"job_id": job.id, **point}) for point in points]
        rows += [(Result, {"job_id": job.id, "stderr": None, "n": 3, **figure})]
        rows += [profile_row(job.id, each) for each in (windows, profile)]
        upsert(session.connection(), rows)
        session.add(
            Artifact(job_id=job.id, kind="model", path=f"{job.run}/model", bytes=14, created_at=1)
        )
        attempt = {key: times[key] for key in ("launched_at", "started_at", "ended_at")}
        session.add(Attempt(job_id=job.id, n=1, token="secret", engine="local", **attempt))
        row = session.get_one(Job, job.id)
        row.state, row.attempts_made, row.finished_at = State.SUCCEEDED, 1, 3
        row.environment = {
            "host": "here",
            "settings": {"x": "/home/me"},
            "threads": 2,
            "work": {"rates": {"disk": 1.0}, "steps": {"rest": {"seconds": 6.0}}},
        }
    return queries.job(job.id)


def add(file: Path, actor: Actor = HOST) -> Job:
    return import_run(file, actor, check_row)


def exported(job: Job, folder: Path, **options: bool) -> Path:
    target = folder / f"{job.run}.tar"
    export_run(job.run, target, **options)
    return target


@pytest.mark.sqlite("another folder is another database")
def test_a_run_is_the_same_elsewhere(ended: Job, tmp_path: Path, move_to: Move) -> None:
    known, curves = record(ended.run), frames.curves(ended.run)
    profile = tensors.profiles(ended.run, "a.weight")[0].values
    log = log_file(ended.run, 1).read_text()
    file = exported(ended, tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600

    move_to(tmp_path / "other")
    upgrade()
    with pytest.raises(NotFoundError):
        queries.job(ended.run)
    job = add(file, Actor("somebody", "host"))
    assert job.run == "count-0001" and job.owner == "somebody" and job.state == State.SUCCEEDED
    found = record(job.run)
    assert {k: v for k, v in found.items() if k not in OWN} == {
        k: v for k, v in known.items() if k not in OWN
    }
    assert frames.curves(job.run).equals(curves)
    assert np.array_equal(tensors.profiles(job.run, "a.weight")[0].values, profile)
    assert tensors.profiles(job.run, "")[0].values.tolist() == [0, 1, 2]  # of the whole model
    assert log_file(job.run, 1).read_text() == log
    assert [x.path for x in queries.artifacts(job.run)] == [f"{job.run}/model"]
    files = sorted(x.name for x in run_folder(job.run).rglob("*") if x.is_file())
    assert files == ["config.json", "log.txt"]  # neither weights nor checkpoints
    last = queries.events(job.run)[-1]
    assert (last.type, last.actor) == ("imported", "somebody") and ended.run in last.text
    assert job.environment == {"threads": 2}
    assert queries.attempts(job.run)[0].token != "secret"
    again = add(file)
    assert again.run == "count-0002"  # once more: another run
    assert add(exported(again, tmp_path / "other")).run == "count-0003"  # and from there


def test_who_may_not_and_what_cannot(ended: Job, tmp_path: Path) -> None:
    file = exported(ended, tmp_path)
    with pytest.raises(ForbiddenError):
        add(file, Actor("guest-1", "guest"))
    with pytest.raises(BackupError, match="exists already"):
        export_run(ended.run, file)
    change(Job, ended.id, state=State.RUNNING)
    with pytest.raises(ConflictError, match="running"):
        export_run(ended.run, tmp_path / "live.tar")


def rewritten(
    file: Path,
    folder: Path,
    change: Callable[[list[Line]], object] = lambda lines: None,
    files: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Return a copy of an archive with changed rows or files and valid checksums."""
    folder.mkdir()
    with open_archive(file, "", RUN_FILE_ENTRIES) as archive:
        archive.unpack(folder, layout.silent)
    lines = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    change(lines)
    (folder / ROWS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    files(folder)
    found = [
        SourceFile(x.relative_to(folder).as_posix(), x, x.stat().st_size)
        for x in folder.rglob("*")
        if x.is_file()
    ]
    target = folder.with_suffix(".tar")
    write_archive(target, found, layout.silent, weights=False, checkpoints=False)
    return target


def of(lines: list[Line], table: str) -> Line:
    return next(line for line in lines if line["table"] == table)


def setting(table: str, **columns: Any) -> Callable[[list[Line]], object]:
    return lambda lines: of(lines, table).update(columns)


def packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def bomb() -> str:
    return packed(zlib.compress(bytes(2**27)))


DEEP: Any = "bottom"
for _ in range(150):
    DEEP = [DEEP]
REFUSED: dict[str, tuple[Callable[[list[Line]], object], str]] = {
    "an artifact outside": (setting("artifacts", path="../../etc/passwd"), "outside the folder"),
    "an artifact of another run": (setting("artifacts", path="sds-0001/model"), "outside the"),
    "an artifact that climbs": (setting("artifacts", path="count-0002/../../x"), "outside the"),
    "a bomb": (
        lambda lines: of(lines, "tensor_profiles").update(values=bomb()),
        "does not unpack to its size",
    ),
    "no zlib": (setting("tensor_profiles", values=packed(b"junk")), "cannot be unpacked"),
    "a shape that lies": (setting("tensor_profiles", shape=[5]), "does not unpack to its size"),
    "a shape without end": (setting("tensor_profiles", shape=[2**40, 2**40]), "too large"),
    "a live run": (setting("jobs", state="running"), "state"),
    "no run": (lambda lines: lines.pop(0), "does not begin with a run"),
    "two runs": (lambda lines: lines.append(dict(lines[0])), "more than one run"),
    "a row twice": (lambda lines: lines.append(dict(of(lines, "results"))), "a row twice"),
    "a table there is none of": (lambda lines: lines.append({"table": "slots"}), "slots"),
    "a column there is none of": (setting("jobs", owner="root"), "owner"),
    "a process": (setting("attempts", engine_ref={"pid": 1}), "engine_ref"),
    "a kind that is a path": (setting("jobs", kind="/x/victim"), "kind"),
    "a kind that climbs": (setting("jobs", kind="../../artifacts/statistics"), "kind"),
    "a kind there is none of": (setting("jobs", kind="nothing"), "no kind of run"),
    "no config": (setting("jobs", config=None), "config"),
    "a config of another type": (setting("jobs", config=[1]), "config"),
    "a config its kind refuses": (setting("jobs", config={"steps": 0}), "must be 1 or more"),
    "a setting there is none of": (setting("jobs", config={"evil": 1}), "no such setting"),
    "an environment that is a list": (setting("jobs", environment=[1]), "environment"),
    "threads that are a text": (setting("jobs", environment={"threads": "2"}), "threads"),
    "a text that is none": (setting("jobs", environment={"text": {"a": [1]}}), "text"),
    "a time below zero": (
        setting("jobs", environment={"decoding_times": {"layers": {"dense": -1.0}, "head": {}}}),
        "decoding_times",
    ),
    "an unknown record": (setting("jobs", environment={"decoder": {"name": "x"}}), "decoder"),
    "a state that is markup": (
        setting("jobs", environment={"workbench": {"model": "toy", "state": "<b>"}}),
        "state",
    ),
    "a checksum that is none": (
        setting("jobs", environment={"text": {"a": {"sha256": 3}}}),
        "sha256",
    ),
    "an error that is a text": (setting("jobs", error="no"), "error"),
    "a name without end": (setting("jobs", name="n" * 10_000), "name"),
    "a tag that is none": (setting("jobs", tags=["<b>"]), "tags"),
    "a time that is none": (setting("jobs", created_at="now"), "created_at"),
    "a time without end": (setting("jobs", finished_at=2**60), "finished_at"),
    "a time before all": (setting("jobs", queued_at=-1), "queued_at"),
    "attempts without end": (setting("jobs", attempts_made=2**40), "attempts_made"),
    "a value that is a text": (setting("results", value="3"), "value"),
    "a value that is not finite": (setting("results", value=float("nan")), "value"),
    "an error below zero": (setting("results", stderr=-1.0), "stderr"),
    "a family with a line feed": (setting("results", family="a\nb"), "family"),
    "a family with a slash": (setting("metric_points", family="a/b"), "family"),
    "a family without letters": (setting("results", family=""), "family"),
    "a family without end": (setting("metric_points", family="f" * 81), "family"),
    "a stage without end": (setting("metric_points", stage="s" * 201), "stage"),
    "a series with spaces around": (setting("results", series=" a "), "series"),
    "a series that is none": (setting("results", series=None), "series"),
    "an axis that is a sentence": (setting("metric_points", axis="A step"), "axis"),
    "details that are a list": (setting("results", details=[1]), "details"),
    "details without end": (setting("results", details={"a": DEEP}), "details"),
    "a number without end": (setting("results", details={"a": 10**400}), "details"),
    "values without end": (setting("results", details={"a": [[]] * 10**5}), "too many or too long"),
    "details of another type": (setting("results", details={"lowest": "a"}), "lowest"),
    "samples that are none": (
        setting("results", family="greedy_agreement", details={"samples": [{"text": 1}]}),
        "samples",
    ),
    "a figure without its texts": (setting("results", family="greedy_agreement"), "samples"),
    "a step below zero": (setting("metric_points", step=-1), "step"),
    "a profile of no block": (setting("tensor_profiles", block=10**9), "block"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused_and_leaves_nothing(
    ended: Job, tmp_path: Path, name: str
) -> None:
    change, said = REFUSED[name]
    bad = rewritten(exported(ended, tmp_path), tmp_path / "bad", change)
    before = len(queries.jobs())
    with pytest.raises(BackupError, match=said):
        add(bad)
    assert len(queries.jobs()) == before
    assert not [*run_folder("count-0003").parent.glob("count-0003")]


FILES = (
    "artifacts/count-0002/work/left/x.bin",  # a resumed run would trust it
    "artifacts/count-0002/Work/left/x.bin",
    "artifacts/count-0002/.attempt",
    "artifacts/count-0001/a1/log.txt",
    "models/mine/config.json",
    "results.db",
)


@pytest.mark.parametrize("name", FILES)
def test_only_files_of_the_run_are_taken(ended: Job, tmp_path: Path, name: str) -> None:
    def placed(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")

    bad = rewritten(exported(ended, tmp_path), tmp_path / "bad", files=placed)
    with pytest.raises(BackupError, match="is not a file of"):
        add(bad)


def test_what_a_process_was_given_elsewhere_is_not_taken_over(ended: Job, tmp_path: Path) -> None:
    hostile = {
        "settings": {"SLIMSCOPE_PLUGINS": '["evil"]', "PYTHONPATH": "/evil"},
        "variables": {"HF_HOME": "/evil", "LD_PRELOAD": "/evil.so"},
        "host": "evil",
        "cpu": "a processor",
    }
    bad = rewritten(
        exported(ended, tmp_path),
        tmp_path / "bad",
        setting("jobs", environment=hostile, state="failed"),
    )
    job = add(bad)
    assert job.environment == {"cpu": "a processor"}
    again = reproduce(job.id, HOST)
    assert again.environment["settings"] == settings().for_jobs()
    service.resume([job.id], HOST)
    with writing() as session:
        attempt = Attempt(job_id=job.id, n=2, token="t", engine="local", launched_at=1)
        session.add(attempt)
        session.flush()
        session.add(Slot(host="here", number=0, attempt_id=attempt.id))
        session.flush()
        row = session.get_one(Job, job.id)
        launch = launch_request(session, attempt, row, remote=False)
        session.rollback()
    assert "/evil" not in launch.environment.values() and launch.environment == {
        **child_environment()
    }


def test_control_characters_are_left_out(ended: Job, tmp_path: Path) -> None:
    change = setting("jobs", note="a \x1b[31mred\x1b[0m note\u202e", name="two\nlines")
    job = add(rewritten(exported(ended, tmp_path), tmp_path / "odd", change))
    assert (job.note, job.name) == ("a red note", "two lines")


def archived(target: Path, names: Sequence[str], declared: int) -> Path:
    """Write a run archive with empty files as its logs, which its manifest says are longer."""
    entries = [*((name, b"") for name in names), (ROWS, b"{}\n")]
    sizes = dict.fromkeys(names, declared) | {ROWS: 3}
    listed = {name: {"bytes": size, "sha256": "0" * 64} for name, size in sizes.items()}
    return write_tar(target, entries, listed)


NAMES = (
    "artifacts/count-0002//work/left/x.bin",
    "./artifacts/count-0002/x",
    "artifacts/count-0002/a/../b",
    "artifacts/count-0002",  # a file where others have their folder
    "artifacts/count-0002/a1/log.txt/x",
    "run.jsonl/x",
    f"artifacts/count-0002/{'n' * 256}",
    f"artifacts/count-0002/{'d/' * 300}x",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leads_to_one_file_in_one_way(ended: Job, tmp_path: Path, name: str) -> None:
    bad = archived(tmp_path / "odd.tar", ["artifacts/count-0002/a1/log.txt", name], 0)
    with pytest.raises(BackupError, match=r"is not a file of a backup|has a file as its folder"):
        add(bad)


def sparse(name: str, real: int) -> bytes:
    """Return a tar header of a sparse file: 10 bytes in the archive, `real` bytes when unpacked."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = tarfile.GNUTYPE_SPARSE, 10
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % (real - 10), b"%011o\0" % 10
    header[483:495] = b"%011o\0" % real
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 10 + bytes(502)


def test_a_sparse_entry_does_not_unpack(ended: Job, tmp_path: Path) -> None:
    name = "artifacts/count-0002/a1/log.txt"
    longer = archived(tmp_path / "longer.tar", [name], 10)
    bomb = tmp_path / "bomb.tar"
    bomb.write_bytes(sparse(name, 2**31) + longer.read_bytes()[512:])
    with tarfile.open(bomb) as archive:
        assert archive.getmembers()[0].issparse()
    with pytest.raises(BackupError, match="is not a file of a backup"):
        add(bomb)
    with pytest.raises(BackupError, match="differs from its manifest"):
        add(longer)
    assert not [*run_folder("count-0003").parent.glob("count-0003")]


def test_a_newer_file_and_one_beyond_the_budgets_are_refused(
    ended: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exported(ended, tmp_path)
    for limit, value in (
        ("MAX_LINE_BYTES", 100),
        ("MAX_ROWS", 3),
        ("MAX_UNPACKED_BYTES", 15),
        ("MAX_CHECK_S", -1.0),
    ):
        with monkeypatch.context() as patch, pytest.raises(BackupError):
            patch.setattr(f"backend.backup.single.{limit}", value)
            add(file)
    with monkeypatch.context() as patch, pytest.raises(BackupError, match="newer"):
        patch.setattr("backend.backup.reading.newest_revision", lambda: "0000")
        add(file)
    assert add(file).state == State.SUCCEEDED


def test_a_damaged_row_is_not_exported(ended: Job, tmp_path: Path) -> None:
    change(Job, ended.id, tags=["no tag"])
    with pytest.raises(BackupError, match="tags"):
        exported(ended, tmp_path)
    assert not [*tmp_path.glob("*.tar*")]
