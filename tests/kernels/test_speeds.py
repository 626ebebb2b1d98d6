"""The choice between implementations by their measured speed."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from backend.compiler import CompilerError
from backend.evaluation import native_text
from backend.kernels import library
from backend.kernels import speeds as room
from backend.kernels.library import kernels_or_none
from backend.kernels.speeds import SpeedComparison, choose
from backend.linalg import gram
from backend.models import blocks
from backend.pruning import redense

RUNS = {"kernels": lambda: None, "PyTorch": lambda: time.sleep(0.001)}
CHOICES = (
    blocks.precision_choice,
    native_text.reading_choice,
    gram.gram_choice,
    redense.descent_choice,
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine on which nothing has been measured."""
    monkeypatch.setattr(room, "machine_file", lambda work: tmp_path / "speeds.json")
    return tmp_path / "speeds.json"


def test_the_choice_is_measured_once_and_logged(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slimscope.kernels")
    choice = choose("work", RUNS)
    assert choice.fastest == "kernels"
    assert f"Fastest on this machine: {choice}." in caplog.text
    monkeypatch.setattr(room, "shortest_s", lambda *_: pytest.fail("they are known"))
    assert choose("work", RUNS) == choice


@pytest.fixture
def unmeasured() -> Iterator[None]:
    for choice in CHOICES:
        choice.cache_clear()
    yield
    for choice in CHOICES:
        choice.cache_clear()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_takes_a_moment_and_leaves_no_trace(
    file: Path, choice: Callable[[], SpeedComparison]
) -> None:
    functions = kernels_or_none()
    if functions is None or (choice in CHOICES[2:] and not functions.bfloat16):
        pytest.skip("the kernels do not support this work here")
    torch.manual_seed(0)
    first, threads, began = torch.rand(1), torch.get_num_threads(), time.process_time()
    torch.manual_seed(0)
    assert len(choice().seconds) == 2 and file.exists()
    assert time.process_time() - began < 5  # some 0.1 s where nothing else computes
    assert torch.equal(torch.rand(1), first) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"work": "work", "seconds": {}}',
        '{"work": "work", "seconds": {"kernels": 1, "another": 1}}',
        '{"work": "work", "seconds": {"kernels": 0, "PyTorch": 1}}',
        '{"work": "work", "seconds": {"kernels": -1, "PyTorch": 1}}',
        '{"work": "work", "seconds": {"kernels": NaN, "PyTorch": 1}}',
        '{"work": "work", "seconds": {"kernels": Infinity, "PyTorch": 1}}',
        '{"work": "work", "seconds": {"kernels": "fast", "PyTorch": 1}}',
        "[" * 10_000,
    ],
)
def test_a_damaged_file_is_measured_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    file.write_text(text)
    monkeypatch.setattr(room, "shortest_s", lambda *_: {"kernels": 4, "PyTorch": 1})
    right = choose("work", RUNS)
    assert right.fastest == "PyTorch"
    assert SpeedComparison.model_validate_json(file.read_bytes()) == right


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "machine_file", lambda work: file / "no" / "folder.json")
    assert choose("work", RUNS).fastest == "kernels"


def test_other_work_machines_and_versions_have_files_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {library.machine_file("work"), library.machine_file("other work")}
    for name, value in (
        ("processor_flags", lambda: frozenset({"none"})),
        ("kernel_version", lambda: "another"),
        ("version", lambda _: "0.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(library, name, value)
            names.add(library.machine_file("work"))
    monkeypatch.setattr(library.platform, "node", lambda: "another")
    assert len(names | {library.machine_file("work")}) == 6


@pytest.mark.usefixtures("unmeasured")
def test_without_kernels_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise CompilerError("No kernels.", "No compiler.", "Install one.")

    monkeypatch.setattr(native_text, "NativeModel", missing)
    monkeypatch.setattr(native_text, "choose", lambda *_: pytest.fail("there is no choice"))
    with pytest.raises(CompilerError):
        native_text.reading_choice()
    for module, supported in ((gram, "kernels_or_none"), (redense, "kernels_or_none")):
        monkeypatch.setattr(module, supported, lambda: None)
        monkeypatch.setattr(module, "choose", lambda *_: pytest.fail("there is no choice"))
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    inputs = redense.InputStatistics(2, torch.ones(2), torch.eye(2), torch.bfloat16)
    assert not gram.is_fast(x) and not redense.is_fast(inputs, redense.SHRINK)


@pytest.mark.parametrize("fastest", ["kernels", "PyTorch"])
def test_gram_matrices_and_descents_use_the_faster_implementation(
    monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    seconds = {"kernels": 1.0, "PyTorch": 1.0} | {fastest: 0.5}
    choice = SpeedComparison(work="work", seconds=seconds)
    monkeypatch.setattr(gram, "gram_choice", lambda: choice)
    monkeypatch.setattr(redense, "descent_choice", lambda: choice)
    functions = kernels_or_none()
    supported = functions is not None and bool(functions.bfloat16)
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    assert gram.is_fast(x) == (supported and fastest == "kernels")
    inputs = redense.InputStatistics(2, torch.ones(2), torch.eye(2), torch.bfloat16)
    assert redense.is_fast(inputs, redense.SHRINK) == (supported and fastest == "kernels")


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_the_forward_precision_is_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    seconds = {"float32": 1.0, "bfloat16": 1.0} | {fastest: 0.5}
    monkeypatch.setattr(
        blocks, "precision_choice", lambda: SpeedComparison(work="", seconds=seconds)
    )
    assert blocks.resolve_dtype("auto", torch.device("cpu")) == fastest
    assert blocks.resolve_dtype("float32", torch.device("cpu")) == "float32"
    assert blocks.resolve_dtype("auto", torch.device("meta")) == "float32"
