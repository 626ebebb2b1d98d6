"""The choice of instructions on processors, systems and compilers that lack some."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from backend import compiler
from backend.compiler import CompilerError, Unit
from backend.kernels import library as room
from backend.kernels.library import described, instruction_sets, kernels, obstacle
from tests.kernels.sets import in_hardware

AMX = "amx"
x86 = pytest.mark.skipif(AMX not in instruction_sets(), reason="this processor is no x86-64")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this a processor with the instructions of a set."""

    def claim(name: str, *, permitted: bool = True, built: tuple[str, ...] = ()) -> None:
        needs = frozenset(instruction_sets()[name].needs)
        monkeypatch.setattr(room, "processor_flags", lambda: needs)
        monkeypatch.setattr(room, "_tiles_permitted", lambda: permitted)
        monkeypatch.setattr(room, "_passes_trial", lambda name: True)
        tables = {f"slimscope_{each}": None for each in built or instruction_sets()}
        monkeypatch.setattr(room, "library", lambda: SimpleNamespace(**tables))

    return claim


@x86
@pytest.mark.parametrize("name", ["amx", "bf16", "vnni", "avx512", "avx2", "plain"])
def test_a_processor_gets_the_best_set_it_has(name: str, processor: Callable[..., None]) -> None:
    processor(name)
    usable = [each for each in instruction_sets() if not obstacle(each)]
    assert usable[0] == name and usable[-1] == "plain"
    assert "the processor has no" in described(name) or name == "amx"


@x86
def test_a_system_that_permits_no_tiles_gets_the_next_best(
    processor: Callable[..., None],
) -> None:
    processor(AMX, permitted=False)
    assert obstacle(AMX) == "the system does not permit tile registers"
    assert not obstacle("bf16")
    assert "(not AMX with BF16 and INT8: the system does not permit tile registers)" in described(
        "bf16"
    )


@x86
@pytest.mark.parametrize("name", instruction_sets())
def test_instructions_that_a_processor_only_claims_to_have_are_not_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set runs in a child process first, which dies where the instructions are missing."""
    has_instructions = in_hardware(name)
    monkeypatch.setattr(room, "processor_flags", lambda: frozenset(_needs(name)))
    monkeypatch.setattr(room, "_tiles_permitted", lambda: True)
    room._passes_trial.cache_clear()
    expected = "the processor fails at the instructions that it claims to have"
    assert obstacle(name) == ("" if has_instructions else expected)
    assert room.machine_file(f"trial of {name}").exists() == (has_instructions and name != "plain")
    room._passes_trial.cache_clear()


def _needs(name: str) -> tuple[str, ...]:
    return instruction_sets()[name].needs


def test_a_trial_that_cannot_start_says_nothing_about_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "machine_file", lambda content: tmp_path / "none")
    monkeypatch.setattr(room.sys, "executable", str(tmp_path / "no-python"))
    room._passes_trial.cache_clear()
    assert room._passes_trial(next(iter(instruction_sets())))
    assert not (tmp_path / "none").exists()
    room._passes_trial.cache_clear()


def test_machines_with_other_processors_share_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library in a shared folder has all sets, and each machine tries and chooses its own."""
    path, trial = room.library()._name, room.machine_file("trial")
    monkeypatch.setattr(room, "processor_flags", lambda: frozenset())
    monkeypatch.setattr(room.platform, "node", lambda: "another")
    for cached in (room.library, kernels):
        cached.cache_clear()
    assert room.library()._name == path and room.machine_file("trial") != trial
    assert kernels().name == "plain"
    for cached in (room.library, kernels):
        cached.cache_clear()


@x86
def test_a_compiler_that_is_too_old_leaves_a_set_out(processor: Callable[..., None]) -> None:
    processor(AMX, built=("bf16", "plain"))
    assert obstacle(AMX) == "the compiler does not know the instructions"
    assert not obstacle("bf16")


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
    monkeypatch.setattr(room, "PROCESSOR", tmp_path / "cpuinfo")
    room.processor_flags.cache_clear()
    found = room.processor_flags()
    room.processor_flags.cache_clear()
    assert not found or room.platform.system() == "Darwin"


def test_a_set_that_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    best = next(iter(instruction_sets()))
    monkeypatch.setattr(room, "obstacle", lambda name: "the processor has none")
    kernels.cache_clear()
    with pytest.raises(CompilerError, match="The processor has none"):
        kernels(best)
    kernels.cache_clear()
