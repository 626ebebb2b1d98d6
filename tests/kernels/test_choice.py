"""The choice of instructions on processors, systems and compilers that lack some, and the choice
between implementations by their measured speed."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backend import compiler
from backend.compiler import CompilerError, Unit
from backend.evaluation import native_text
from backend.kernels import library, speeds
from backend.kernels.library import described, instruction_sets, kernels, kernels_or_none, obstacle
from backend.kernels.speeds import SpeedComparison, choose
from backend.linalg import gram
from backend.models import blocks
from backend.pruning import redense
from tests.kernels.sets import in_hardware

AMX = "amx"
x86 = pytest.mark.skipif(AMX not in instruction_sets(), reason="this processor is no x86-64")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a processor with the instructions of a set."""

    def claim(name: str, *, permitted: bool = True, built: tuple[str, ...] = ()) -> None:
        needs = frozenset(instruction_sets()[name].needs)
        monkeypatch.setattr(library, "processor_flags", lambda: needs)
        monkeypatch.setattr(library, "tiles_permitted", lambda: permitted)
        monkeypatch.setattr(library, "_passes_trial", lambda name: True)
        tables = {f"slimscope_{each}": None for each in built or instruction_sets()}
        monkeypatch.setattr(library, "library", lambda: SimpleNamespace(**tables))

    return claim


@x86
@pytest.mark.parametrize(
    ("name", "changes", "best", "why"),
    [
        ("amx", {}, "amx", ""),
        *((x, {}, x, "the processor has no") for x in ("bf16", "vnni", "avx512", "avx2", "plain")),
        ("amx", {"permitted": False}, "bf16", "the system does not permit tile registers"),
        ("amx", {"built": ("bf16", "plain")}, "bf16", "the compiler does not know the"),
    ],
)
def test_a_processor_gets_the_best_set_it_has(
    name: str, changes: dict, best: str, why: str, processor: Callable[..., None]
) -> None:
    processor(name, **changes)
    usable = [each for each in instruction_sets() if not obstacle(each)]
    assert usable[0] == best and usable[-1] == "plain"
    assert obstacle(AMX).startswith(why) and bool(why) == bool(obstacle(AMX))
    assert why in described(best)


@x86
@pytest.mark.parametrize("name", instruction_sets())
def test_instructions_that_a_processor_only_claims_to_have_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set runs in a child process first, which dies where the instructions are missing."""
    has_instructions = in_hardware(name)
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset(_needs(name)))
    monkeypatch.setattr(library, "tiles_permitted", lambda: True)
    library._passes_trial.cache_clear()
    expected = "the processor fails at the instructions that it claims to have"
    assert obstacle(name) == ("" if has_instructions else expected)
    assert library.machine_file(f"trial of {name}").exists() == (
        has_instructions and name != "plain"
    )
    library._passes_trial.cache_clear()


@x86
def test_tiles_that_pytorch_uses_pass_the_trial() -> None:
    """The trial's process is a new program, which has to request the tile registers itself."""
    if not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    command = (sys.executable, "-m", "backend.kernels.trial", AMX)
    assert subprocess.run(command, check=False).returncode == 0
    assert in_hardware(AMX)


def _needs(name: str) -> tuple[str, ...]:
    return instruction_sets()[name].needs


def test_a_trial_that_cannot_start_says_nothing_about_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "machine_file", lambda content: tmp_path / "none")
    monkeypatch.setattr(library.sys, "executable", str(tmp_path / "no-python"))
    library._passes_trial.cache_clear()
    assert library._passes_trial(next(iter(instruction_sets())))
    assert not (tmp_path / "none").exists()
    library._passes_trial.cache_clear()


def test_machines_with_other_processors_share_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in a shared folder has all sets, and each machine tries and chooses its own."""
    path, trial = library.library()._name, library.machine_file("trial")
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset())
    monkeypatch.setattr(library.platform, "node", lambda: "another")
    for cached in (library.library, kernels):
        cached.cache_clear()
    assert library.library()._name == path and library.machine_file("trial") != trial
    assert kernels().name == "plain"
    for cached in (library.library, kernels):
        cached.cache_clear()


def test_what_the_compiler_refuses_is_left_out_unless_it_is_needed(tmp_path: Path) -> None:
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\necho 'error: unrecognized option -mamx-tile' >&2\nexit 1\n")
    program.chmod(0o755)
    asked = str(program), tmp_path, tmp_path
    assert compiler._compile(*asked, Unit(AMX, "x.cpp", needed=False)) is None
    with pytest.raises(CompilerError, match="unrecognized option"):
        compiler._compile(*asked, Unit("plain", "x.cpp"))


@pytest.mark.parametrize("text", [None, "", "nonsense", "flags", "flags\t\t:", "\xff" * 100])
def test_a_processor_that_tells_nothing_gets_the_plain_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="latin-1")
    monkeypatch.setattr(library, "PROCESSOR", tmp_path / "cpuinfo")
    library.processor_flags.cache_clear()
    found = library.processor_flags()
    library.processor_flags.cache_clear()
    assert not found or library.platform.system() == "Darwin"


def test_a_set_that_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    best = next(iter(instruction_sets()))
    monkeypatch.setattr(library, "obstacle", lambda name: "the processor has none")
    kernels.cache_clear()
    with pytest.raises(CompilerError, match="The processor has none"):
        kernels(best)
    kernels.cache_clear()


RUNS = {"kernels": lambda: None, "PyTorch": lambda: sum(range(100_000))}
CHOICES = (
    blocks.precision_choice,
    native_text.reading_choice,
    gram.gram_choice,
    redense.descent_choice,
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine on which nothing has been measured."""
    monkeypatch.setattr(speeds, "machine_file", lambda work: tmp_path / "speeds.json")
    return tmp_path / "speeds.json"


def test_the_choice_is_measured_once_and_logged(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slimscope.kernels")
    choice = choose("work", RUNS)
    assert choice.fastest == "kernels"
    assert f"Fastest on this machine: {choice}." in caplog.text
    monkeypatch.setattr(speeds, "shortest_s", lambda *_: pytest.fail("they are known"))
    assert choose("work", RUNS) == choice


def test_processes_that_measure_at_the_same_time_agree(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SpeedComparison(work="work", seconds={"kernels": 1, "PyTorch": 2})

    def while_another_stores(*_: object) -> dict[str, float]:
        file.write_text(first.model_dump_json())
        return {"kernels": 4, "PyTorch": 1}

    monkeypatch.setattr(speeds, "shortest_s", while_another_stores)
    assert choose("work", RUNS) == first
    assert SpeedComparison.model_validate_json(file.read_bytes()) == first


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
    monkeypatch.setattr(speeds, "shortest_s", lambda *_: {"kernels": 4, "PyTorch": 1})
    right = choose("work", RUNS)
    assert right.fastest == "PyTorch"
    assert SpeedComparison.model_validate_json(file.read_bytes()) == right


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "machine_file", lambda work: file / "no" / "folder.json")
    assert choose("work", RUNS).fastest == "kernels"


def test_each_instruction_set_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "machine_file", lambda work: tmp_path / f"{hash(work)}.json")
    for name in ("bf16", "amx"):
        other = SimpleNamespace(library=SimpleNamespace(_name="built"), name=name)
        monkeypatch.setattr(speeds, "kernels_or_none", lambda other=other: other)
        choose("work", RUNS)
    assert len([*tmp_path.glob("*.json")]) == 2


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
