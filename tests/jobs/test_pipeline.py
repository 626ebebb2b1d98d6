"""Tests of pipelines."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backend.errors import ConfigError, ConflictError, SlimscopeError
from backend.queue import scheduling, service
from backend.queue.actor import Actor
from backend.queue.lifecycle import start_attempt
from backend.queue.scheduling import awaited, pipeline_jobs
from backend.store import queries
from backend.store.session import writing
from backend.store.states import Lane, State
from backend.store.tables import Job, Slot
from jobs import pipeline
from jobs.fields.models import needed_runs
from jobs.submit import submit
from tests.queue.conftest import change

HOST = Actor("anna", "host")
TEXT = """
name: all three
model: toy
steps:
  - sds: {preset: quick look}
  - dlqat: {steps: 5}
  - amphista: {minutes: 0, steps: 5, answers: 32, heldout: 8}
  - benchmark: {count: 2}
"""


def ended(run: Job, state: State) -> None:
    change(Job, run.id, state=state)


def startable() -> list[int]:
    return scheduling.ready_job_ids(Lane.SLOTS)


@pytest.fixture
def queued(queue: object) -> list[Job]:
    return pipeline.queue(pipeline.read(TEXT), HOST)


def test_every_step_works_on_what_the_one_before_saves(queued: list[Job]) -> None:
    sds, dlqat, drafter, speed = queued
    assert [job.kind for job in queued] == ["sds", "dlqat", "amphista", "benchmark"]
    assert [job.config["model"] for job in queued] == ["toy", sds.run, dlqat.run, dlqat.run]
    assert speed.config["drafters"] == drafter.run
    assert {job.name for job in queued} == {"all three"}
    awaited_runs = awaited(job.id for job in queued)
    assert {n: [job.run for job in jobs] for n, jobs in awaited_runs.items()} == {
        dlqat.id: [sds.run],
        drafter.id: [dlqat.run],
        speed.id: [dlqat.run, drafter.run],
    }
    assert [job.run for job in pipeline_jobs(drafter.id)] == [job.run for job in queued]


def test_a_run_starts_when_those_it_needs_have_succeeded(queued: list[Job]) -> None:
    sds, *_, speed = queued
    assert startable() == [sds.id]
    ended(sds, State.FAILED)
    assert startable() == []  # and no slot is taken in vain
    with writing() as session:
        session.merge(Slot(host="here", number=0))
        assert start_attempt(session, "here", "local", 1) is None
    service.resume([sds.run], HOST)
    for before, after in pairwise(queued):
        ended(before, State.SUCCEEDED)
        assert startable() == [after.id]
    assert awaited([speed.id]) == {}


def test_what_saves_nothing_or_has_failed_is_not_waited_for(queue: object) -> None:
    for kind, state in (
        ("benchmark", State.QUEUED),
        ("sds", State.FAILED),
        ("amphista", State.QUEUED),
    ):
        before = submit(kind, {"model": "toy"}, HOST)
        ended(before, state)
        with pytest.raises(ConfigError, match="has not saved a model"):
            submit("dlqat", {"model": before.run}, HOST)


BRANCHED = """
model: toy
steps:
  - sds: {pattern: ["2:4", "50%"], preset: quick look}
  - dlqat: {bits: [3, 4], stages: [gptq], keep_zeros: true, preset: quick look}
  - evaluation: {}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the keys model and steps"),
        ("[model, toy]", "the keys model and steps"),
        ("model: toy\nsteps: []", "steps"),
        ("model: toy\nsteps: [sds: {}, dlqat: {bits: 9}]", "Step 2 (dlqat) cannot run"),
        ("model: toy\nsteps: [sds: {}, other: {}]", "Step 2 (other)"),
        ("model: toy\nsteps: [{sds: {}, dlqat: {}}]", "Step 1 has 2 kinds"),
        ("model: toy\nsteps: [sds: {preset: none}]", "no preset"),
        ("model: toy\nsteps: [generate: {}]", "Step 1 (generate)"),
        ("model: no-such\nsteps: [sds: {}]", "Step 1 (sds)"),
        ("model: toy\nsteps: [sds: {}]\nmore: 1", "more"),
        ("model: !!python/object/apply:os.getcwd []\nsteps: [sds: {}]", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("model: toy\nsteps: [sds: {seed: !!int one}]", "not valid YAML"),
        ("model: toy\nsteps: [sds: &a {preset: [*a]}]", "instead of an alias"),
        ("model: toy\nsteps: [sds: {seed: 1, seed: 2}]", "seed appears more than once"),
        ("model: toy\nmodel: toy\nsteps: [sds: {}]", "model appears more than once"),
        ("model: toy\nsteps: [sds: !!map [seed]]", "not valid YAML"),
        ("model: toy\nsteps: " + "[" * 5000, "nested too deeply"),
        ("model: toy\nsteps: [sds: {seed: " + "9" * 5000 + "}]", "Step 1 (sds) cannot run"),
        ("x" * 30_000, "more than"),
        (BRANCHED.replace("[3, 4]", "[]", 1), ""),
        (BRANCHED.replace("[3, 4]", "[3, 3]", 1), ""),
        (BRANCHED.replace("[3, 4]", "[3, [99]]", 1), ""),
        (BRANCHED.replace("[3, 4]", f"[{', '.join(map(str, range(99)))}]", 1), ""),
        # 4 branches of 20 runs
        (BRANCHED.replace("{}", f"{{seed: [{', '.join(map(str, range(20)))}]}}", 1), ""),
        (BRANCHED.replace("model: toy", "model: toy\nalone: true", 1), ""),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_queued(
    queue: object, text: str, message: str
) -> None:
    with pytest.raises(SlimscopeError) as refused:
        pipeline.queue(pipeline.read(text), HOST)
    assert message in str(refused.value) and queries.jobs() == []


@pytest.mark.parametrize("error", [ConfigError("It is full."), OSError("The disk is gone.")])
def test_an_error_at_the_third_step_leaves_no_row(
    queue: object, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def third_fails(kind: str, *given: Any, **how: Any) -> Job:
        if kind == "amphista":
            raise error
        return submit(kind, *given, **how)

    monkeypatch.setattr(pipeline, "submit", third_fails)
    with pytest.raises(type(error)):
        pipeline.queue(pipeline.read(TEXT), HOST)
    assert queries.jobs() == []


def test_what_only_the_runs_before_tell_is_refused_too(queue: object) -> None:
    """Checks against the future output of earlier steps: packed weights do not decode in
    float32."""
    steps = "[sds: , dlqat: , benchmark: {precision: float32, count: 2}]"
    with pytest.raises(ConfigError, match="float32"):
        pipeline.queue(pipeline.read(f"model: toy\nsteps: {steps}"), HOST)
    assert queries.jobs() == []


def test_values_mean_what_they_say_without_quotes(queue: object) -> None:
    text = "model: toy\nname: 2026-01-01\nsteps: [sds: {pattern: 2:4, control: no, damping: 1e-3}]"
    job = pipeline.queue(pipeline.read(text), HOST)[0]
    assert job.name == "2026-01-01" and job.config["pattern"] == "2:4"
    assert job.config["control"] is False and job.config["damping"] == 0.001
    assert pipeline.read("model: toy\nsteps: [sds:, dlqat: {preset: }]").steps[1].preset == ""


@pytest.mark.parametrize("name", pipeline.PRESETS)
def test_presets_are_pipelines(queue: object, name: str) -> None:
    read = pipeline.read(pipeline.preset(name, "toy"))
    assert read.name == name and len(pipeline.plan(read)) == len(read.steps)


def test_a_prompt_that_reads_like_a_run_waits_for_none(queue: Path) -> None:
    pruned = submit("sds", {"model": "toy"}, HOST)
    assert needed_runs({"prompt": f"{pruned.run}, how are you?", "model": "toy"}) == []
    assert needed_runs({"model": pruned.run}) == [pruned.id]


def test_steps_alone_come_last_on_the_first_model(queue: object) -> None:
    queued = pipeline.queue(pipeline.read(TEXT.replace("steps:", "alone: true\nsteps:", 1)), HOST)
    sds, *_, speed = queued[:4]
    assert [job.kind for job in queued[4:]] == ["dlqat", "benchmark", "amphista", "benchmark"]
    assert [job.config["model"] for job in queued[4:]] == [
        "toy",
        queued[4].run,
        "toy",
        "toy",
    ]
    assert queued[7].config["drafters"] == queued[6].run and not queued[5].config["drafters"]
    assert startable() == [sds.id]
    for job in queued[:4]:
        ended(job, State.SUCCEEDED)
    assert startable() == [queued[4].id]  # when the chain is done
    assert [job.id for job in pipeline_jobs(speed.id)] == [job.id for job in queued]
    assert [queries.job(job.run).tags for job in queued] == [[]] * 4 + [["alone"]] * 4


def test_what_works_on_the_first_model_anyway_is_not_repeated(queue: object) -> None:
    text = "model: toy\nalone: true\nsteps: [amphista: {minutes: 1}, sds: , dlqat: ]"
    kinds = [step.kind for step in pipeline.read(text).steps]
    assert kinds == ["amphista", "sds", "dlqat", "dlqat"]


def test_a_run_that_waits_is_not_moved_to_the_front(queued: list[Job]) -> None:
    with pytest.raises(ConflictError, match=f"waits for {queued[0].run}"):
        service.run_next(queued[1].run, HOST)
    assert service.run_next(queued[0].run, HOST).run == queued[0].run


def test_runs_of_later_steps_follow_every_value(queue: object) -> None:
    read = pipeline.read(BRANCHED)
    assert [len(planned.configs) for planned in pipeline.plan(read)] == [2, 2, 1]
    jobs = pipeline.queue(read, HOST)
    by_run = {job.run: job for job in jobs}
    assert [job.kind for job in jobs] == ["sds"] * 2 + ["dlqat"] * 4 + ["evaluation"] * 4
    lineages = set()
    for job in jobs[-4:]:
        quantized = by_run[job.config["model"]]
        pruned = by_run[quantized.config["model"]]
        lineages.add((pruned.config["pattern"], quantized.config["bits"]))
        assert [before.run for before in awaited([job.id])[job.id]] == [quantized.run]
        assert quantized.config["stages"] == "gptq"
    assert lineages == {("2:4", 3), ("2:4", 4), ("50%", 3), ("50%", 4)}
