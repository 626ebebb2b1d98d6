"""Models and texts that the machines of a cluster identify by name and content."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.errors import DatasetError, ModelError
from backend.files import EDGE_BYTES, fingerprint_of
from backend.inputs import check_inputs, inputs_of
from backend.models.sources.spec import resolve_model_path
from backend.queue import service
from backend.queue.launcher import node_environment
from backend.settings import settings
from tests.conftest import Given
from tests.queue.conftest import HOST, queue

__all__ = ["queue"]
Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, given: Given) -> Machine:
    """Make this process run as a machine with its own folders, and return them."""

    def at(name: str, inputs: dict[str, str] | None = None) -> Path:
        home = tmp_path / name
        for folder in ("models", "texts"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        given(MODEL_DIRS=json.dumps([str(home / "models")]), TEXT_DIR=str(home / "texts"))
        given(INPUTS=json.dumps(inputs or {}))
        return home

    return at


def put(home: Path, weights: bytes = b"w", text: str = "words") -> str:
    """Put a model and a text on a machine, and return the path of the model."""
    folder = home / "models" / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (home / "texts" / "own.txt").write_text(text)
    return str(folder)


def test_a_fingerprint_changes_with_any_end_of_any_file(tmp_path: Path) -> None:
    file, middle = tmp_path / "weights", bytes(4 * EDGE_BYTES)
    found = set()
    for content in (middle, b"1" + middle[1:], middle[1:] + b"1", middle[1:], b"", b"1"):
        file.write_bytes(content)
        found |= {fingerprint_of(file), fingerprint_of(tmp_path)}
    file.rename(tmp_path / "other")
    assert len(found | {fingerprint_of(tmp_path)}) == 7


def test_a_model_is_found_by_its_name_on_another_machine(data_dir: Path, machine: Machine) -> None:
    model = put(machine("app"))
    inputs = inputs_of({"model": model, "evaluation": "file:own.txt", "sides": [{"model": "toy"}]})
    assert sorted(inputs) == [model, "file:own.txt"]
    there = put(machine("gpu-1", inputs))
    assert resolve_model_path(model) == Path(there)
    check_inputs(settings().inputs)


@pytest.mark.parametrize(
    ("there", "error", "said"),
    [
        ((b"v", "words"), ModelError, "has no model mine"),
        ((b"w", "other"), DatasetError, "does not have the text own.txt"),
        ((), ModelError, "has no model mine"),  # the path is there, but may not be read from
    ],
)
def test_another_model_or_text_of_that_name_is_refused_and_the_machine_is_named(
    data_dir: Path, machine: Machine, there: tuple[bytes, str], error: type[Exception], said: str
) -> None:
    inputs = inputs_of({"model": put(machine("app")), "text": "file:own.txt"})
    home = machine("gpu-1", inputs)
    if there:
        put(home, *there)
    with pytest.raises(error, match=f"{os.uname().nodename} {said}"):
        check_inputs(settings().inputs)


def test_a_run_on_a_cluster_is_submitted_with_its_inputs_and_one_of_this_machine_without(
    queue: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = put(machine("app"))
    alone = service.enqueue("count", {"model": model}, HOST)
    assert service.INPUTS not in alone.environment["settings"]
    with monkeypatch.context() as patch:
        patch.setattr(service, "settings", lambda: settings().model_copy(update={"engine": "ray"}))
        job = service.enqueue("count", {"model": model}, HOST)
    told = node_environment(job.environment["settings"], {})
    assert json.loads(told[service.INPUTS]) == {model: fingerprint_of(Path(model))}
    again = service.enqueue("count", {}, HOST, parent=job)  # which repeats it
    assert again.environment["settings"] == job.environment["settings"]
