"""How long a run will take, from those that have finished."""

from pathlib import Path

import pytest

from backend.store.session import writing
from backend.store.states import State
from jobs.runtime import duration
from jobs.runtime.duration import START_S, estimate_seconds
from jobs.submit import checked
from tests.queue.conftest import bare_job


def finished(
    number: int, work: float, seconds: float, timed: float = 0.0, **values: object
) -> None:
    """A run that took `seconds`, of which it had been given `timed`."""
    row = {
        "id": number,
        "kind": "amphista",
        "config": {"model": "toy"},
        "state": State.SUCCEEDED,
        "attempts_made": 1,
        "started_at": 1000,
        "finished_at": 1000 + round(1000 * seconds),
        "flops": work,
        "timed_seconds": timed,
    }
    with writing() as session:
        session.add(bare_job(**(row | values)))


def test_runs_of_the_same_size_count(queue: Path) -> None:
    """Small runs are mostly overhead: theirs is not the pace of a large one."""
    for number, seconds in enumerate((30, 32, 34), 1):
        finished(number, 1e9, START_S + seconds)
    for number, seconds in enumerate((100, 110, 900), 11):
        finished(number, 1e12, START_S + seconds)
    seconds, basis = estimate_seconds("amphista", "toy", 2e12)
    assert seconds == pytest.approx(START_S + 220) and basis == "learned from 3 finished runs"
    assert estimate_seconds("amphista", "toy", 1e9)[0] == pytest.approx(START_S + 32)


def test_only_machines_of_its_class_count(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor of this machine; where the GPU is not known, that of the newest run."""
    here = {"device": "cpu", "cpu": f"{duration.processor()}, 2 of 64 cores"}
    for number, (seconds, environment) in enumerate(
        [
            (500, {"device": "cpu", "cpu": "Slow, fast, 2 of 2 cores"}),
            (100, here),
            (7, {"device": "NVIDIA B1", "cpu": here["cpu"]}),
            (5, {"device": "NVIDIA B2"}),
        ],
        1,
    ):
        finished(number, 1e9, START_S + seconds, environment=environment)

    def seconds(**given: object) -> float:
        return estimate_seconds("amphista", "toy", 1e9, **given)[0] - START_S

    assert seconds() == seconds(device="cpu") == pytest.approx(100)
    monkeypatch.setattr(duration, "installed_gpus", lambda: [0])
    assert seconds() == pytest.approx(5) and seconds(device="cpu") == pytest.approx(100)
    finished(10, 1e9, START_S + 80, environment=here)  # the newest, but it used no GPU
    assert seconds() == seconds(device="cuda:0") == pytest.approx(5)
    assert seconds(device="cpu") == pytest.approx(90)


def test_without_gpu_runs_auto_learns_of_all(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch may have no CUDA; where a GPU is asked for, they say nothing."""
    monkeypatch.setattr(duration, "installed_gpus", lambda: [0])
    finished(1, 1e9, START_S + 80)
    assert estimate_seconds("amphista", "toy", 1e9)[0] == pytest.approx(START_S + 80)
    assert "rough estimate" in estimate_seconds("amphista", "toy", 1e9, device="cuda")[1]


def test_given_time_is_taken_as_given(queue: Path) -> None:
    finished(1, 1e9, START_S + 40 + 600, timed=600)
    assert estimate_seconds("amphista", "toy", 1e9, timed_seconds=60)[0] == pytest.approx(
        START_S + 40 + 60
    )
    assert "rough estimate" in estimate_seconds("amphista", "toy", 1e9)[1]  # whose steps are given
    short, long = (
        checked("amphista", {"model": "toy", "minutes": minutes})[1] for minutes in (1, 11)
    )
    assert long.seconds and short.seconds
    assert long.seconds - short.seconds == pytest.approx(600)


def test_others_and_interrupted_runs_teach_nothing(queue: Path) -> None:
    finished(1, 1e9, 5000, config={"model": "other"})
    finished(2, 1e9, 5000, attempts_made=2)
    finished(3, 1e9, 5000, kind="sds")
    finished(4, 1e9, 5000, state=State.FAILED)
    assert "rough estimate" in estimate_seconds("amphista", "toy", 1e9)[1]
