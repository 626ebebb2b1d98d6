"""Checkpoints are whole or absent; killed runs end as if they had not been."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from backend.checkpoints import Checkpoints, HeldFolder
from backend.queue import service
from backend.queue.artifacts import read_log, work_folder
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.benchmark.report import decoder_reports
from jobs.metrics import COST, MEMORY, PROCESSOR, TREE
from jobs.reproduction import compare
from jobs.submit import submit
from tests.conftest import ALL
from tests.faults.conftest import until_dead
from tests.jobs.kinds import test_amphista, test_benchmark_kind, test_dlqat, test_sds
from tests.queue.conftest import HOST, Wait, curve, process_of


def write(checkpoints: Checkpoints, name: str, text: str) -> None:
    with checkpoints.write(name) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text(text)


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
    assert found is not None and (found / "sub" / "b.txt").read_text() == "third"
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
    first, second = queries.attempts(job.id)
    assert (first.outcome, second.outcome) == (None, "succeeded")
    assert second.resumed_from == "step-1"
    assert curve(job.id, "attempt") == [1, 1, 2, 2] and curve(job.id, "count") == [*range(4)]


# kills --------------------------------------------------------------------------------------------


KILLS = {  # kind -> its config, and the checkpoints at which its process is killed
    "sds": ({**test_sds.SMALL, "segments": 4, "windows": 2, "control": False}, ["second-*"]),
    "dlqat": (
        {**test_dlqat.SMALL, "steps": 24, "windows": 2, "sample_tokens": 0},
        [*["gptq-0001"] * ALL, "train-dlqat-0-0"],
    ),
    "amphista": (
        {**test_amphista.SMALL, "answers": 24, "heldout": 8, "answer_tokens": 16, "steps": 40},
        ["drafter"],
    ),
}
TIMED = (COST, TREE, MEMORY.family, PROCESSOR.family)  # curves that depend on the machine


@pytest.mark.parametrize("kind", KILLS)
def test_kills_in_the_middle_change_no_weight_and_no_figure(
    loop: SupervisorLoop, wait: Wait, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The last attempt of the first kind is a process as in production, which shares nothing with
    the others; of the other kinds with `make test-all`."""
    monkeypatch.setattr(service, "RETRIES", 3)
    config, places = KILLS[kind]
    whole, killed = (submit(kind, config, HOST).id for _ in range(2))
    assert wait(whole, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    for attempt, place in enumerate(places, 1):
        work = work_folder(queries.job(killed).run)
        wait(killed, when=lambda work=work, place=place: any(work.glob(place)))
        assert queries.job(killed).attempts_made == attempt
        loop.engine.again = attempt < len(places) or not (ALL or kind == "sds")
        process_of(killed).kill()
    assert wait(killed, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert queries.job(killed).attempts_made == len(places) + 1
    assert_same(queries.job(whole), queries.job(killed))


def assert_same(whole: Job, killed: Job) -> None:
    """Weights, figures, curves, statistics and profiles, except for what a clock measured."""
    assert killed.environment["weights_sha256"] == whole.environment["weights_sha256"]
    assert compare(whole.id, killed.id).outcome == "equal"
    one, other = (untimed_curves(job) for job in (whole, killed))
    assert one.equals(other) and len(one)
    for stored in (frames.tensor_table, frames.profile_names):
        one, other = (in_order(stored(job.id)) for job in (whole, killed))
        assert one.equals(other)


def untimed_curves(job: Job) -> pd.DataFrame:
    curves = frames.curves(job.id).drop(columns="at")
    return in_order(curves[~curves["family"].isin(TIMED)])


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values([*table.columns[:6]]).reset_index(drop=True)


def test_a_killed_run_keeps_its_answers(wait: Wait) -> None:
    job = submit(
        "benchmark",
        {**test_benchmark_kind.SMALL, "count": 6, "max_new_tokens": 48, "rounds": 2},
        HOST,
    )

    def answers(prompt: int) -> list[Path]:
        return [*work_folder(job.run).glob(f"prompt-{prompt:05d}-*/answers.json")]

    wait(job.id, when=lambda: bool(answers(0)))
    first = answers(0)[0]
    process_of(job.id).kill()
    before = first.read_bytes()
    wait(job.id, when=lambda: queries.job(job.id).attempts_made == 2)
    wait(job.id, State.SUCCEEDED, State.FAILED, when=lambda: bool(answers(5)))
    assert not first.exists() or first.read_bytes() == before
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert decoder_reports(job.id)[0].prompts == 6
