"""Checkpoints are whole or absent."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.checkpoints import Checkpoints, HeldFolder
from backend.queue.artifacts import read_log, work_folder
from backend.queue.supervisor import SupervisorLoop
from backend.store import queries
from backend.store.states import State
from jobs.submit import submit
from tests.faults.conftest import until_dead
from tests.queue.conftest import HOST, Wait, curve


def write(checkpoints: Checkpoints, name: str, text: str) -> None:
    with checkpoints.write(name) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


def test_round_trip_and_replacement(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work")
    assert checkpoints.find("one") is None
    write(checkpoints, "one", "first")
    write(checkpoints, "one", "second")
    found = checkpoints.find("one")
    assert found is not None and (found / "sub" / "b.txt").read_text() == "second"
    assert [p.name for p in checkpoints.root.iterdir()] == ["one"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_private_files_of_a_library_get_the_mode_of_the_others(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Checkpoints(tmp_path).write("model") as folder:
            save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "manifest.json"), 0o666 & ~mask)


def test_a_kill_while_one_is_replaced_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-"):
            raise Killed
        return path.replace(target)

    write(Checkpoints(tmp_path), "one", "first")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", rename)
        write(Checkpoints(tmp_path), "one", "second")
    checkpoints = Checkpoints(tmp_path)  # of the next process
    found = checkpoints.find("one")
    assert found is not None and (found / "a.txt").read_text() == "first"
    write(checkpoints, "one", "third")
    found = checkpoints.find("one")
    assert found is not None and (found / "a.txt").read_text() == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize("name", ["one", "model[Q4]", "a*?"])
def test_what_a_killed_process_began_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / f".tmp-99999999-{name}").mkdir()  # no process has such a number
    write(Checkpoints(tmp_path), name, "text")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(RuntimeError), checkpoints.write("one") as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["add", "no manifest"])
def test_a_damaged_checkpoint_does_not_count(tmp_path: Path, harm: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, "one", "text")
    if harm == "add":
        (tmp_path / "one" / "stray").write_text("")
    else:
        (tmp_path / "one" / "manifest.json").unlink()
    assert checkpoints.find("one") is None


def test_figures_are_written_before_the_checkpoint_shows(tmp_path: Path) -> None:
    seen: list[bool] = []
    checkpoints = Checkpoints(tmp_path, lambda: seen.append((tmp_path / "one").exists()))
    write(checkpoints, "one", "text")
    assert seen == [False] and checkpoints.find("one") is not None


def test_a_folder_is_known_to_be_gone_even_if_there_is_another(tmp_path: Path) -> None:
    held = HeldFolder(tmp_path / "work")
    assert not held.is_gone()
    (tmp_path / "work").rmdir()
    assert held.is_gone()
    (tmp_path / "work").mkdir()
    assert held.is_gone()


# of a run -----------------------------------------------------------------------------------------


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(wait: Wait) -> None:
    job = submit("count", {"steps": 4, "tears_at": 2, "pause": 0}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    first, second = queries.attempts(job.id)
    assert (first.exit_code, second.resumed_from) == (-9, "step-1")
    assert "Continuing from checkpoint step-1." in read_log(job.run, 2)[0]
    assert not work_folder(job.run).exists()  # neither has anything half-written stayed


def test_a_flipped_bit_in_the_last_checkpoint_costs_that_one_only(
    loop: SupervisorLoop, wait: Wait
) -> None:
    job = submit("count", {"steps": 4, "dies_at": 3, "pause": 0}, HOST)
    loop.turn()
    until_dead(job.id)
    file = work_folder(job.run) / "step-2" / "done.txt"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]))
    assert wait(job.id, State.SUCCEEDED, State.FAILED, State.LOST) == State.SUCCEEDED
    assert queries.attempts(job.id)[1].resumed_from == "step-1"
    assert curve(job.id, "attempt") == [1, 1, 2, 2]
