"""What no run of any kind can work with is refused before it is queued."""

import shutil
from pathlib import Path

import pytest

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError, DatasetError, ModelError, SlimscopeError
from backend.models.sources.spec import TOY_FOLDER
from backend.printable import readable_bytes, readable_seconds
from backend.settings import settings
from backend.store import queries
from jobs import limits
from jobs.cli.runs import _queued
from jobs.fields import processes
from jobs.fields.drafters import drafter_folder
from jobs.operations.details import _run_text
from jobs.record import cost_text, record, summary
from jobs.submit import checked, submit
from tests.conftest import Given
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.queue.conftest import HOST

KINDS = ("sds", "dlqat", "amphista", "benchmark", "generate", "evaluation", "statistics")
READ_TEXT = KINDS[:-1]


def values(kind: str, model: str) -> dict[str, object]:
    return {"sides": model, "prompt": "One day"} if kind == "generate" else {"model": model}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gpus", [0, 2])
def test_no_such_gpu(queue: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gpus: int) -> None:
    monkeypatch.setattr("jobs.submit.gpu_count", lambda: gpus)
    with pytest.raises(ConfigError, match="no device cuda:99") as refused:
        submit(kind, {**values(kind, "toy"), "device": "cuda:99"}, HOST)
    assert refused.value.field == "device" and f"sees {gpus} GPUs" in refused.value.why
    assert queries.jobs() == []


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        ("evaluation", {"evaluation_text": "file:few.txt"}, "evaluation_text"),
        ("sds", {"evaluation_text": "file:few.txt"}, "evaluation_text"),
        ("dlqat", {"calibration_text": "file:few.txt"}, "calibration_text"),
        # enough for either part, not for both
        (
            "sds",
            {
                "calibration_text": "file:few.txt",
                "evaluation_text": "file:few.txt",
                "segments": 1,
                "windows": 1,
                "context": 100,
            },
            "calibration_text",
        ),
    ],
)
def test_a_text_with_fewer_bytes_than_tokens_are_needed(
    queue: Path,
    tmp_path: Path,
    given: Given,
    kind: str,
    fields: dict,
    field: str,
) -> None:
    (tmp_path / "few.txt").write_text("word " * 100)
    given(TEXT_DIR=str(tmp_path))
    with pytest.raises(DatasetError, match=r"few\.txt is too short") as refused:
        submit(kind, {"model": "toy", **fields}, HOST)
    assert refused.value.field == field and "500 bytes" in refused.value.why
    assert queries.jobs() == []


def test_torch_is_asked_for_gpus_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    limits.gpu_count.cache_clear()
    assert limits.gpu_count() == 0
    limits.gpu_count.cache_clear()


@pytest.mark.parametrize(
    ("fields", "gpus", "slots", "refused"),
    [
        ({"processes": 4, "batch": 8}, 0, 1, None),
        ({"processes": 4, "batch": 2}, 0, 1, ("processes", "cannot share")),
        ({"processes": 9, "batch": 9}, 0, 1, ("processes", "8 cores")),
        ({"processes": 4, "batch": 8}, 0, 4, ("processes", "2 cores")),
        ({"processes": 4, "batch": 8}, 2, 1, ("processes", "2 GPUs")),
        ({"processes": 4, "batch": 8, "device": "cpu"}, 2, 1, None),
        ({"processes": 2, "batch": 8, "device": "cuda:1"}, 2, 1, ("device", "GPU of its own")),
    ],
)
@pytest.mark.parametrize("kind", ["dlqat", "amphista"])
def test_processes_that_have_no_room_or_nothing_to_share(
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: Given,
    kind: str,
    fields: dict,
    gpus: int,
    slots: int,
    refused: tuple[str, str] | None,
) -> None:
    monkeypatch.setattr(processes, "available_threads", lambda: 8)
    monkeypatch.setattr(processes, "installed_gpus", lambda: [*range(gpus)])
    monkeypatch.setattr(processes, "gpu_count", lambda: gpus)
    monkeypatch.setattr("jobs.submit.gpu_count", lambda: gpus)
    given(SLOTS=str(slots))
    if refused is None:
        alone = checked(kind, {"model": "toy", **fields, "processes": 1})[1]
        assert checked(kind, {"model": "toy", **fields})[1].bytes > 2 * alone.bytes
        return
    with pytest.raises(ConfigError) as error:
        checked(kind, {"model": "toy", **fields})
    assert error.value.field == refused[0]
    assert refused[1] in f"{error.value.what} {error.value.why}"


def test_on_a_cluster_a_run_has_room_for_what_it_asks(data_dir: Path, given: Given) -> None:
    given(DATABASE_URL="postgresql+psycopg://nobody@nowhere/db", ENGINE="slurm", THREADS="8")
    for gpus, expected in (("0", (8, 8)), ("4", (4, 8))):
        given(JOB_GPUS=gpus)
        assert tuple(processes.places(each)[0] for each in ("auto", "cpu")) == expected


@pytest.mark.parametrize("kind", READ_TEXT)
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_model_that_cannot_read_text(queue: Path, kind: str, harm: str) -> None:
    folder = settings().root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, folder)
    (folder / "tokenizer.json").unlink()
    if harm == "damaged":
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read text") as refused:
        submit(kind, values(kind, str(folder)), HOST)
    assert refused.value.field == ("sides" if kind == "generate" else "model")
    assert queries.jobs() == []
    submit("statistics", {"model": str(folder)}, HOST)  # of the weights alone


@pytest.mark.parametrize("kind", ["benchmark", "generate"])
def test_a_drafter_that_was_cut_short(queue: Path, kind: str) -> None:
    run, asked = trained(), len(queries.jobs())
    folder = drafter_folder(run)
    whole = folder.rename(folder.with_name("whole"))
    with Checkpoints(folder.parent).write(folder.name) as draft:
        shutil.copytree(whole, draft, dirs_exist_ok=True)
    weights = folder / "drafter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    chosen = {"sides": run.run, "prompt": "One day"}
    with pytest.raises(SlimscopeError, match=r"drafter\.safetensors has changed") as refused:
        submit(kind, chosen if kind == "generate" else {"model": "toy", "drafters": run.run}, HOST)
    assert refused.value.field == ("sides" if kind == "generate" else "drafters")
    assert len(queries.jobs()) == asked


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model", "", "Model was not accepted. It must not be empty."),
        ("model", "m" * 301, "It must have 300 characters or fewer."),
        ("device", "gpu", "Device was not accepted. Allowed: auto, cpu, cuda or cuda:0."),
        ("rate", 0.0, "Learning rate was not accepted. It must be more than 0."),
        ("threads", None, "It must be a whole number."),
        ("bits", 99, "It must be 8 or less."),
    ],
)
def test_bad_values_are_refused_plainly(queue: Path, field: str, value: object, said: str) -> None:
    with pytest.raises(SlimscopeError) as refused:
        submit("dlqat", {"model": "toy", field: value}, HOST)
    assert refused.value.field == field and said in str(refused.value)


def test_all_fields_at_fault_are_named_at_once(queue: Path) -> None:
    wrong = {"model": "toy", "bits": 99, "group_size": 7, "rank": -1}
    with pytest.raises(SlimscopeError) as refused:
        checked("dlqat", wrong)
    found = [refused.value, *refused.value.others]
    assert [error.field for error in found] == ["bits", "rank", "group_size"]
    with pytest.raises(SlimscopeError) as refused:  # nothing is checked against another model
        checked("dlqat", {**wrong, "model": "toys"})
    assert "group_size" not in [error.field for error in refused.value.others]


def test_the_estimate_is_kept_beside_what_the_run_took(queue: Path) -> None:
    job = submit("sds", {"model": "toy"}, HOST)
    told = cost_text(job)
    seconds, size = (job.environment[key] for key in ("estimated_seconds", "estimated_bytes"))
    assert told == f"Estimated {readable_seconds(seconds)}, {readable_bytes(size)}."
    job.started_at, job.finished_at, job.peak_bytes = 1000, 91_000, 10**9
    assert cost_text(job) == f"{told[:-1]}; took 1\u00a0min\u00a030\u00a0s, 1 GB."
    assert told in _queued(summary(queries.job(job.id)))
    assert told in _run_text(record(job.id))
    job.environment = {}
    assert cost_text(job) == ""
