"""Runs that train on several processes: one of them dies, all are stopped, none is left behind."""

from __future__ import annotations

import psutil
import pytest

from backend.queue import service
from backend.queue.folders import read_log, work_folder
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.states import State
from jobs.submit import submit
from tests.jobs.kinds import test_amphista, test_dlqat
from tests.queue.conftest import HOST, Wait, process_of

DLQAT = {
    **test_dlqat.SMALL, "steps": 60, "gptq": False, "rtn": False, "start": "rounded",
    "windows": 2, "sample_tokens": 0,
}  # fmt: skip
DRAFTER = {**test_amphista.SMALL, "steps": 90}


def losses(run: int, name: str) -> dict[int, float]:
    """Step -> loss. Fails where a step has two."""
    curves = frames.curves(run)
    found = curves[curves["name"] == name]
    assert found["step"].is_unique
    return dict(zip(found["step"].tolist(), found["value"].tolist(), strict=True))


def figures(run: int) -> dict[str, float]:
    """How often each head is right."""
    return {r.stage: r.value for r in queries.results([run]) if r.metric == "top1"}


def the_other_of(run: int) -> psutil.Process:
    """The second process of a run that has two."""
    (other,) = process_of(run).children()
    return other


@pytest.fixture
def begun(wait: Wait):
    """Begins to train on two processes; returns the run when the checkpoint is there."""

    def begin(kind: str, config: dict, checkpoint: str) -> int:
        job = submit(kind, {**config, "processes": 2}, HOST)
        work = work_folder(job.run)
        wait(job.id, State.FAILED, when=lambda: any(work.glob(checkpoint)))
        assert queries.job(job.id).error is None
        return job.id

    return begin


@pytest.mark.parametrize("dies", ["first", "other"])
def test_one_process_dies_and_the_run_goes_on_as_if_it_had_not(
    loop: SupervisorLoop, wait: Wait, begun, dies: str
) -> None:
    """Resumed once by fresh processes, as in production."""
    run = begun("dlqat", DLQAT, "train-dlqat-1")
    loop.engine.again = dies == "first"
    other = the_other_of(run)
    (process_of(run) if dies == "first" else other).kill()
    assert wait(run, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert queries.job(run).attempts_made == 2 and not other.is_running()
    assert any("(signal 9)" in event.text for event in queries.events(run))
    assert ("Process 2 of 2 died" in read_log(queries.job(run).run, 1)[0]) == (dies == "other")
    assert [*losses(run, "loss/dlqat")] == [*range(1, DLQAT["steps"] + 1)]


def test_all_stop_together_and_a_resumed_run_ends_as_on_one_process(
    loop: SupervisorLoop, wait: Wait, begun
) -> None:
    run = begun("amphista", DRAFTER, "drafter")
    loop.engine.again = True
    other, name = the_other_of(run), queries.job(run).run
    service.cancel(name, HOST)
    assert wait(run, State.CANCELLED, State.FAILED) == State.CANCELLED
    assert not other.is_running() and "Stopped on request" in read_log(name, 1)[0]
    alone = submit("amphista", DRAFTER, HOST).id
    service.resume(name, HOST)
    for each in (alone, run):
        assert wait(each, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    one, two = (losses(each, "loss") for each in (alone, run))
    assert two == pytest.approx(one, rel=1e-3) and len(one) == DRAFTER["steps"]
    here, there = (figures(each) for each in (alone, run))
    assert there == pytest.approx(here, rel=0.1)
