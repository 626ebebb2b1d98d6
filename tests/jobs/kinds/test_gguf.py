"""A GGUF export as a job: what it writes, records and refuses."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from backend.errors import SlimscopeError
from backend.queue.folders import run_folder
from backend.store import queries
from jobs.submit import submit
from tests.models.sources.test_gguf import write_toy
from tests.queue.conftest import HOST, Wait, succeeded


def test_the_toy_becomes_one_file_that_is_recorded(wait: Wait) -> None:
    job = succeeded(wait, "gguf", {"model": "toy", "type": "Q8_0"})
    file = run_folder(job.run) / "GGUF" / "Toy-stories-built-in-Q8_0.gguf"
    assert str(gguf.GGUFReader(file).get_field("general.architecture").contents()) == "llama"
    (size,) = [r.value for r in queries.results([job.id]) if str(r.metric) == "bytes/Q8_0"]
    (artifact,) = queries.artifacts(job.id)
    assert size == file.stat().st_size <= artifact.bytes and artifact.kind == "GGUF"
    assert queries.job(job.id).environment["weights_sha256"] == artifact.sha256


def test_what_gguf_cannot_hold_is_refused_before_it_waits(queue: Path) -> None:
    for config, why in (
        ({"model": "sds-0099"}, "There is no run"),
        ({"model": "toy", "type": "Q3_K"}, "Type was not accepted"),
    ):
        with pytest.raises(SlimscopeError, match=why):
            submit("gguf", config, HOST)
    assert queries.jobs() == []


def test_a_file_is_exported_by_its_path(wait: Wait, queue: Path) -> None:
    file = write_toy(queue / "models" / "toy.gguf")
    succeeded(wait, "gguf", {"model": str(file), "type": "Q4_0"})
