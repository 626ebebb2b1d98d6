"""Tests of requests that no kind accepts, rejected before a run is queued."""

import shutil
from pathlib import Path

import pytest

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError, DatasetError, ModelError, SlimscopeError
from backend.models import cards
from backend.models.cards import Card, CardReport
from backend.models.sources.spec import TOY_FOLDER
from backend.printable import readable_bytes, readable_seconds
from backend.settings import settings
from backend.store import queries
from jobs.chat import ask
from jobs.cli.runs import _queue_text
from jobs.fields.drafters import drafter_folder
from jobs.operations.runs import _run_text
from jobs.record import cost_text, record, summary
from jobs.submit import check_and_estimate, submit
from tests.conftest import Given
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.queue.conftest import HOST
from tests.refusals import refusal

KINDS = ("sds", "dlqat", "amphista", "benchmark", "evaluation", "statistics")
READ_TEXT = KINDS[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gpus", [0, 2])
def test_no_such_gpu(queue: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gpus: int) -> None:
    found = [Card(device=f"cuda:{n}", name="A", uuid="", total_bytes=1) for n in range(gpus)]
    monkeypatch.setattr(cards, "report", lambda: CardReport(cards=found))
    with refusal("device", "no device cuda:99", f"sees {gpus} GPUs", error=ConfigError):
        submit(kind, {"model": "toy", "device": "cuda:99"}, HOST)
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
    with refusal(field, "few.txt is too short", "500 bytes", error=DatasetError):
        submit(kind, {"model": "toy", **fields}, HOST)
    assert queries.jobs() == []


def test_torch_is_asked_for_gpus_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cards.report.cache_clear()
    found = cards.report()
    assert found.cards == () and found.reason
    cards.report.cache_clear()


@pytest.mark.parametrize("kind", READ_TEXT)
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_model_that_cannot_read_text(queue: Path, kind: str, harm: str) -> None:
    folder = settings().root / "models" / "mine"
    shutil.copytree(TOY_FOLDER, folder)
    (folder / "tokenizer.json").unlink()
    if harm == "damaged":
        (folder / "tokenizer.json").write_text("{")
    with refusal("model", "cannot read text", error=ModelError):
        submit(kind, {"model": str(folder)}, HOST)
    assert queries.jobs() == []
    submit("statistics", {"model": str(folder)}, HOST)  # of the weights alone


def test_a_drafter_that_was_cut_short(queue: Path) -> None:
    run, job_count = trained(), len(queries.jobs())
    folder = drafter_folder(run)
    intact = folder.rename(folder.with_name("whole"))
    with Checkpoints(folder.parent).write(folder.name) as draft:
        shutil.copytree(intact, draft, dirs_exist_ok=True)
    weights = folder / "drafter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with refusal("drafters", "drafter.safetensors has changed"):
        submit("benchmark", {"model": "toy", "drafters": run.run}, HOST)
    with refusal("sides", "drafter.safetensors has changed"):
        ask({"sides": run.run, "prompt": "One day"}, False, HOST)
    assert len(queries.jobs()) == job_count


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "", "Model was not accepted. It must not be empty."),
        ("model", "m" * 301, "It must have 300 characters or fewer."),
        ("device", "gpu", "Device was not accepted. Allowed: auto, cpu, cuda or cuda:0."),
        ("learning_rate", 0.0, "Learning rate was not accepted. It must be more than 0."),
        ("threads", None, "It must be a whole number."),
        ("bits", 99, "It must be 8 or less."),
    ],
)
def test_bad_values_are_refused_plainly(
    queue: Path, field: str, value: object, message: str
) -> None:
    with refusal(field, message):
        submit("dlqat", {"model": "toy", field: value}, HOST)


def test_all_fields_at_fault_are_named_at_once(queue: Path) -> None:
    wrong = {"model": "toy", "bits": 99, "group_size": 7, "rank": -1}
    with pytest.raises(SlimscopeError) as refused:
        check_and_estimate("dlqat", wrong)
    errors = [refused.value, *refused.value.others]
    assert [error.field for error in errors] == ["bits", "rank", "group_size"]
    with pytest.raises(SlimscopeError) as refused:  # nothing is checked against another model
        check_and_estimate("dlqat", {**wrong, "model": "toys"})
    assert "group_size" not in [error.field for error in refused.value.others]


def test_the_estimate_is_kept_beside_what_the_run_took(queue: Path) -> None:
    job = submit("sds", {"model": "toy"}, HOST)
    text = cost_text(job)
    seconds, size = (job.environment[key] for key in ("estimated_seconds", "estimated_bytes"))
    assert text == f"Estimated {readable_seconds(seconds)}, {readable_bytes(size)}."
    job.started_at, job.finished_at, job.peak_bytes = 1000, 91_000, 10**9
    assert cost_text(job) == f"{text[:-1]}; took 1\u00a0min\u00a030\u00a0s, 1 GB."
    assert text in _queue_text(summary(queries.job(job.id)))
    assert text in _run_text(record(job.id))
    job.environment = {}
    assert cost_text(job) == ""
