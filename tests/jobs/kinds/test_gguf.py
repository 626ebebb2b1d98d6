"""Tests of GGUF export jobs: files, records and rejected configs."""

from pathlib import Path

import gguf
import pytest
from gguf import GGMLQuantizationType as Kind

from backend.errors import ConfigError
from backend.queue.artifacts import run_folder
from backend.store import queries
from jobs.submit import check_and_estimate, submit
from tests.models.sources.test_gguf import write_toy
from tests.queue.conftest import HOST, Wait, succeeded
from tests.refusals import refusal


def test_the_toy_becomes_one_file_that_is_recorded(wait: Wait) -> None:
    job = succeeded(wait, "gguf", {"model": "toy", "type": "Q8_0"})
    file = run_folder(job.run) / "GGUF" / "Toy-stories-built-in-Q8_0.gguf"
    assert str(gguf.GGUFReader(file).get_field("general.architecture").contents()) == "llama"
    (size,) = [r.value for r in queries.results([job.id]) if str(r.metric) == "bytes/Q8_0"]
    (artifact,) = queries.artifacts(job.id)
    assert size == file.stat().st_size <= artifact.bytes and artifact.kind == "GGUF"
    assert queries.job(job.id).environment["weights_sha256"] == artifact.sha256


def test_the_codes_of_a_run_that_is_planned_decide(queue: Path) -> None:
    small = {"model": "toy", "bits": 4, "group_size": 32, "stages": "rtn", "embedding": "8"}
    job = submit("dlqat", {**small, "format": "slimscope"}, HOST)
    (predicted := job.environment["predicted_bytes"])
    assert 0 < predicted < job.environment["source_bytes"]
    _, cost = check_and_estimate("gguf", {"model": job.run})
    assert cost.sizes[0] == predicted and cost.sizes[1] == pytest.approx(predicted, rel=0.25)
    for config, field, why in (
        ({"type": "Q4_1", "embedding": "Q8_0"}, "embedding", "copied unchanged"),
        ({"type": "F16"}, "type", "once more"),
    ):
        with refusal(field, why, error=ConfigError):
            check_and_estimate("gguf", {"model": job.run, **config})
    plain = submit("dlqat", {**small, "embedding": "dense", "format": "dense"}, HOST)
    assert check_and_estimate("gguf", {"model": plain.run, "type": "F16"})[1].sizes


def test_a_file_larger_than_its_source_is_told_beside_the_field(queue: Path) -> None:
    file = write_toy(queue / "models" / "toy.gguf", Kind.Q4_0)
    _, cost = check_and_estimate("gguf", {"model": str(file)})
    assert cost.sizes[1] > cost.sizes[0] and "file of its source" in cost.field_warnings["type"]
    _, cost = check_and_estimate("gguf", {"model": str(file), "type": "Q4_0", "embedding": "Q4_0"})
    assert not cost.field_warnings


def test_a_file_of_another_architecture_is_refused_before_it_is_converted(queue: Path) -> None:
    file = write_toy(queue / "models" / "phi.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.fields.gguf.ARCHITECTURES", {})
        patch.setattr("backend.export.gguf.architecture.ARCHITECTURES", {})
        with pytest.raises(ConfigError, match="architecture is llama"):
            check_and_estimate("gguf", {"model": str(file)})
