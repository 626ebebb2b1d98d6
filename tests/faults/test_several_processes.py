"""Runs that train on several processes: one of them dies, all are stopped, none is left behind."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from backend.metric_key import MetricKey
from backend.queue import service
from backend.queue.artifacts import read_log, work_folder
from backend.store import frames, queries
from backend.store.states import State
from jobs.kind import kind_named
from jobs.metrics import TOP1
from jobs.runtime import followers
from jobs.runtime.rank import FollowerTask, Rank
from jobs.submit import submit
from tests.jobs.kinds import test_amphista, test_dlqat
from tests.queue.conftest import HOST, Wait, process_of

DLQAT = {
    **test_dlqat.SMALL,
    "steps": 100,
    "processes": 2,
    "stages": "dlqat",
    "start": "rounded",
    "windows": 2,
    "sample_tokens": 0,
}
DRAFTER = {**test_amphista.SMALL, "answers": 32, "steps": 60, "batch": 16}


def losses(run: int, name: str) -> dict[int, float]:
    """Step -> loss. Fails where a step has two."""
    curves = frames.curves(run)
    found = frames.by_key(curves)[MetricKey.parse(name)]
    assert found["step"].is_unique
    return dict(zip(found["step"].tolist(), found["value"].tolist(), strict=True))


def figures(run: int) -> dict[str, float]:
    """How often each head is right."""
    return {r.stage: r.value for r in queries.results([run]) if r.metric == TOP1}


def the_other_of(run: int) -> psutil.Process:
    """The second process of a run that has two."""
    (other,) = process_of(run).children()
    return other


def is_alive(process: psutil.Process) -> bool:
    """Whether it still works; nobody may have asked yet how it ended."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def trained(run: int) -> float:
    """When its training was saved last; 0 before that."""
    saved = work_folder(queries.job(run).run).glob("train-*/facts.json")
    return max((file.stat().st_mtime for file in saved), default=0.0)


def test_processes_die_and_the_run_goes_on_as_if_they_had_not(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the first, and then the first itself."""
    monkeypatch.setattr(service, "RETRIES", 3)
    run, before = submit("dlqat", DLQAT, HOST).id, 0.0
    for attempt, victim in enumerate((the_other_of, process_of), 1):
        wait(run, when=lambda before=before: trained(run) > before)
        assert queries.job(run).attempts_made == attempt
        other = the_other_of(run)
        victim(run).kill()
        wait(run, when=lambda attempt=attempt: queries.job(run).attempts_made > attempt)
        assert not is_alive(other)
        before = trained(run)  # the attempt that has ended may have saved until its end
    assert wait(run, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    assert [a.exit_code for a in queries.attempts(run)] == [-9, -9, 0]
    assert [*losses(run, "loss@dlqat")] == [*range(1, DLQAT["steps"] + 1)]
    name = queries.job(run).run
    told = ["Process 2 died (signal 9)" in read_log(name, n)[0] for n in (1, 2, 3)]
    assert told == [True, False, False]


def test_a_process_that_is_told_nothing_ends_with_the_first() -> None:
    """Started as in production."""
    process = followers.started(followers.environment())
    assert process.communicate(b"", timeout=60)[0] is None and process.returncode == 0


def test_others_are_told_the_config_as_it_is_and_where_its_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a run has saved is found by the database, which they have not; its name identifies the
    checkpoints."""
    monkeypatch.setattr(followers, "resolve_model", lambda spec: SimpleNamespace(source="/there"))
    echo = lambda _: subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: E731
    monkeypatch.setattr(followers, "started", echo)
    kind = kind_named("dlqat")
    config = kind.config.model_validate({**DLQAT, "model": "sds-0001"})
    context = SimpleNamespace(
        log=print, work=tmp_path, attempt_n=3, accompany=lambda pids: None, plan={"stages": ["rtn"]}
    )
    first = Rank(0, 2, tmp_path / "rendezvous")
    team = followers.FollowerProcesses(kind, config, context, first)
    (child,) = team._children
    told = FollowerTask(**json.loads(child.stdout.readline()))
    team.end()
    assert kind.config.model_validate(told.config) == config and told.model == "/there"
    assert (told.attempt, told.number, told.world) == (3, 1, 2)
    assert told.plan == context.plan


def test_nothing_they_met_by_is_left(tmp_path: Path) -> None:
    """Nor what a killed attempt has left."""
    (tmp_path / ".rendezvous-1-left-0").touch()
    (tmp_path / "train-dlqat").mkdir()
    with followers.rendezvous_file(tmp_path, 2) as rendezvous:
        assert not [*tmp_path.glob(".rendezvous-1*")] and not rendezvous.exists()
        rendezvous.touch()
        rendezvous.with_name(f"{rendezvous.name}-left-1").touch()
    assert [each.name for each in tmp_path.iterdir()] == ["train-dlqat"]


def test_all_stop_together_and_a_resumed_run_ends_as_on_one_process(wait: Wait) -> None:
    job = submit("amphista", {**DRAFTER, "processes": 2}, HOST)
    run, name = job.id, job.run
    wait(run, State.FAILED, when=(work_folder(name) / "drafter").exists)
    other = the_other_of(run)
    service.cancel(name, HOST)
    assert wait(run, State.CANCELLED, State.FAILED) == State.CANCELLED
    assert not is_alive(other) and "Stopped on request" in read_log(name, 1)[0]
    alone = submit("amphista", DRAFTER, HOST).id
    service.resume(name, HOST)
    for each in (alone, run):
        assert wait(each, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    one, two = (losses(each, "loss") for each in (alone, run))
    assert two == pytest.approx(one, rel=1e-3) and len(one) == DRAFTER["steps"]
    here, there = (figures(each) for each in (alone, run))
    assert there == pytest.approx(here, rel=0.1)
