"""Tests of sweeps: parsing, rejected sweeps, one transaction, and aggregation over seeds; of
reproductions: original settings, equal results, and all kinds of differences."""

import json
from itertools import product
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError, ConflictError
from backend.metric_key import MetricKey
from backend.models.sources.toy.stories import stories
from backend.queue import service
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from jobs import sweep
from jobs.record import record
from jobs.reproduction import compare, reproduce, reproduced
from jobs.submit import command_line
from tests.conftest import Given
from tests.jobs.kinds.test_sds import SMALL
from tests.queue.conftest import HOST, Wait, bare_job, change, succeeded
from tests.refusals import refusal
from tests.shell import slimscope

TOY = {"model": "toy", "segments": 4, "context": 64, "windows": 2}


def test_values_are_lists_ranges_and_quoted() -> None:
    read = sweep.read("sds", [("pattern", "2:4, 70%"), ("adjust-steps", "1,3..5")])
    assert read == {"pattern": ["2:4", "70%"], "adjust_steps": ["1", "3", "4", "5"]}
    assert sweep.read("sds", [("model", 'toy,"a,b"')]) == {"model": ["toy", "a,b"]}
    assert sweep.read("sds", [("model", "0..2")]) == {"model": ["0..2"]}  # only numbers count up


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("nope", "1")], "nope"),
        ([("seed", "")], "seed"),
        ([("seed", "1,,2")], "seed"),
        ([("seed", "2..0")], "seed"),
        ([("seed", "0..999999999")], "seed"),  # and takes no memory for it
        ([("seed", "0..63"), ("base", "wanda,sparsegpt")], "base"),
        ([("seed", "1"), ("seed", "2")], "seed"),
        ([("seed", "0..63," * 10_000)], "seed"),
        ([("seed", "1\r2")], "seed"),
        ([("seed", "1"), ("base", "wanda"), ("pattern", "2:4"), ("windows", "2")], "windows"),
    ],
)
def test_what_cannot_be_swept_names_its_field(pairs: list[tuple[str, str]], field: str) -> None:
    with refusal(field, error=ConfigError):
        sweep.read("sds", pairs)


def test_every_combination_is_a_run_with_values_of_the_right_type(queue: Path) -> None:
    swept = {"base": ["wanda", "sparsegpt"], "seed": ["0", "1"], "control": ["false"]}
    sweep_plan = sweep.plan("sds", TOY, swept)
    combinations = [(c.base, c.seed, c.control) for c in sweep_plan.configs]  # type: ignore[attr-defined]
    assert combinations == [*product(("wanda", "sparsegpt"), (0, 1), (False,))]
    bases = [TOY | {"control": False, "base": base} for base in swept["base"]]
    estimates = [sweep.plan("sds", values, {}).estimate for values in bases]
    seconds = sum(2 * estimate.seconds for estimate in estimates)  # type: ignore[operator]
    assert sweep_plan.estimate.seconds == pytest.approx(seconds)
    assert {estimate.bytes for estimate in estimates} == {sweep_plan.estimate.bytes}


@pytest.mark.parametrize(
    ("values", "swept", "field", "message"),
    [
        ({}, {"pattern": ["2:4", "7x"]}, "pattern", "pattern 7x"),
        ({}, {"pattern": ["2:4", "3:7"]}, "pattern", "do not divide"),
        ({"segments": 0}, {"seed": ["0", "1"]}, "segments", "seed 0"),
        ({}, {"pattern": ["50%", "0.5"]}, "pattern", "is the same run as pattern 50%"),
        ({}, {"seed": ["1", "1"]}, "seed", "is the same run"),
        ({}, {"model": ["toy", "/etc/passwd"]}, "model", "model /etc/passwd"),
    ],
)
def test_one_bad_refuses_all(
    queue: Path, values: dict, swept: dict, field: str, message: str
) -> None:
    with refusal(field, message):
        sweep.queue("sds", TOY | values, swept, HOST)
    assert queries.jobs() == []


def test_all_are_queued_at_once_or_none(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = sweep.queue("count", {}, {}, HOST)
    assert [job.sweep for job in alone] == [None] and queries.sweep(alone[0].id) == []
    jobs = sweep.queue("count", {}, {"steps": ["1", "2", "3"]}, HOST, name="three")
    assert [job.sweep for job in queries.sweep(jobs[2].id)] == [jobs[0].id] * 3
    assert [job.config["steps"] for job in queries.sweep(jobs[0].run)] == [1, 2, 3]

    def fail(_session: object, job_id: int, *_: object) -> None:
        if job_id == jobs[-1].id + 2:
            raise OSError("the disk is full")

    monkeypatch.setattr(service, "note", fail)
    with pytest.raises(OSError):
        sweep.queue("count", {}, {"steps": ["1", "2", "3"]}, HOST)
    assert len(queries.jobs()) == 4


def test_a_whole_sweep_is_cancelled_and_resumed(queue: Path, wait: Wait) -> None:
    first, second, third = sweep.queue("count", {"pause": 0.3}, {"steps": ["1", "40", "41"]}, HOST)
    assert wait(first.id, State.SUCCEEDED) == State.SUCCEEDED
    wait(second.id, State.RUNNING)
    states = service.cancel([first.id, second.id, third.id], HOST)
    assert states == [State.SUCCEEDED, State.RUNNING, State.CANCELLED]
    assert queries.job(second.id).desired == "stop"
    assert wait(second.id, State.CANCELLED) == State.CANCELLED
    assert [j.id for j in service.resume([1, 2, 3], HOST)] == [second.id, third.id]
    assert {j.state for j in queries.sweep(1)} == {State.SUCCEEDED, State.QUEUED}
    with pytest.raises(ConflictError, match="It is succeeded"):
        service.resume([first.id], HOST)


# the table ----------------------------------------------------------------------------------------


def job(number: int, **config: object) -> Job:
    return Job(id=number, kind="sds", config={"model": "toy", **config})


def figure(number: int, value: float, stage: str = "sds", metric: str = "perplexity") -> Result:
    return Result(job_id=number, stage=stage, family=metric, value=value, details={})


def test_mean_and_sample_deviation_over_seeds() -> None:
    jobs = [job(1, base="wanda", seed=0), job(2, base="wanda", seed=1), job(3, base="x", seed=0)]
    results = [figure(1, 10.0), figure(2, 13.0), figure(3, 5.0), figure(1, 4.0, "dense")]
    rows = sweep.table(jobs, results)
    assert [(r.values, r.stage, r.n) for r in rows] == [
        ({"base": "wanda"}, "dense", 1),
        ({"base": "wanda"}, "sds", 2),
        ({"base": "x"}, "sds", 1),
    ]
    assert rows[1].mean == 11.5 and rows[1].spread == pytest.approx(4.5**0.5)
    assert rows[2].spread is None  # one run tells no spread


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=8))
def test_the_spread_is_that_of_numpy(values: list[float]) -> None:
    jobs = [job(n, seed=n) for n in range(len(values))]
    (row,) = sweep.table(jobs, [figure(n, value) for n, value in enumerate(values)])
    assert row.values == {} and row.n == len(values)
    assert row.mean == pytest.approx(np.mean(values))
    assert row.spread == pytest.approx(np.std(values, ddof=1), abs=1e-9 * max(values))
    assert row.spread == stdev(values)


# the command line ---------------------------------------------------------------------------------


def test_the_command_line_of_a_sweep_reads_back_as_the_same(queue: Path) -> None:
    swept = {"pattern": ["2:4", "70%"], "model": ["toy", "a,b"], "adjust_steps": ["1", "2"]}
    line = command_line("sds", {"segments": 4, "pattern": "4:8"}, swept)
    assert line == (
        "slimscope submit sds --segments 4 --sweep pattern=2:4,70% "
        """--sweep 'model=toy,"a,b"' --sweep adjust-steps=1,2"""
    )
    pairs = [("pattern", "2:4,70%"), ("model", 'toy,"a,b"'), ("adjust-steps", "1,2")]
    assert sweep.read("sds", pairs) == swept


def test_sweep_from_a_shell(supervised: SupervisorLoop) -> None:
    words = ("submit", "count", "--pause", "0", "--sweep", "steps=1,2", "--sweep", "seed=0..1")
    completed = slimscope(*words, "--wait", "--json", meanwhile=supervised.turn)
    assert completed.returncode == 0, completed.stderr
    sweep_record = json.loads(completed.stdout)
    assert sweep_record["fields"] == ["seed", "steps"] and len(sweep_record["runs"]) == 4
    totals = [(r["values"]["steps"], r["mean"], r["spread"], r["n"]) for r in sweep_record["table"]]
    assert totals == [(1, 1.0, 0.0, 2), (2, 2.0, 0.0, 2)]
    again = json.loads(slimscope("show", "count-0002", "--sweep", "--json").stdout)
    for run in (*again["runs"], *sweep_record["runs"]):
        del run["disk_bytes"]  # the supervisor measures it after a run has ended
    assert again == sweep_record
    output = slimscope("show", "3", "--sweep", "--metric", "total").stdout
    assert "4 succeeded" in output and "steps" in output
    for words in (
        ("show", "1", "--sweep", "--metric", "speed"),
        ("cancel", "1", "--sweep"),  # all have ended
        ("submit", "count", "--sweep", "steps=0"),
        ("submit", "count", "--sweep", "steps"),
    ):
        refused = slimscope(*words)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, words


def made(number: int, results: dict[str, float], **values: object) -> None:
    """Store a finished run with these figures of the SDS stage."""
    row = {
        "id": number,
        "config": {"pattern": "2:4"},
        "state": State.SUCCEEDED,
        "environment": {"weights_sha256": "aa", "threads": 1, "versions": {"torch": "2.9"}},
    }
    with writing() as session:
        session.add(bare_job(**(row | values)))
        session.flush()
        for metric, value in results.items():
            key = MetricKey.parse(metric)
            details = {"corpus": "toystories"}
            key_fields = {"stage": "sds", "family": key.family, "series": key.series}
            session.add(Result(job_id=number, **key_fields, value=value, details=details))


def test_the_same_comes_out_until_the_text_changes(
    wait: Wait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(TEXT_DIR=str(tmp_path))
    text = tmp_path / "own.txt"
    text.write_text("\n\n".join(stories(5, 400)))
    few = {"windows": 2, "adjust_steps": 2, "redense_steps": 2, "control": False}
    values = {**SMALL, **few, "calibration_text": "file:own.txt"}
    first = succeeded(wait, "sds", values)

    monkeypatch.delenv("SLIMSCOPE_TEXT_DIR")  # the settings are frozen with the run
    settings.cache_clear()
    second = reproduce(first.run, HOST)
    assert second.environment["settings"]["SLIMSCOPE_TEXT_DIR"] == str(tmp_path)
    assert wait(second.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    same = compare(first.run, second.run)
    assert (same.outcome, same.differences) == ("equal", []) and same.compared > 15, str(same)

    text.write_text("\n\n".join(stories(6, 400)))
    third = reproduce(first.run, HOST)
    assert wait(third.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    changed = compare(first.run, third.run)
    assert changed.outcome == "different" and changed.weights is not None
    assert [t.what for t in changed.texts] == ["held-out text", "calibration text"]
    # measured on the evaluation text, which is the same
    assert not any(d.what.startswith("Perplexity, Dense") for d in changed.results)


def test_what_differs_is_told_in_words(queue: Path) -> None:
    figures = {"perplexity": 10.0, "seconds/pruning": 1.0, "tokens_per_second": 20.0}
    made(1, figures)
    environment = {"weights_sha256": "bb", "threads": 2, "versions": {"torch": "2.10"}}
    made(2, figures | {"perplexity": 11.0}, environment=environment, config={"pattern": "50%"})
    comparison = compare(1, 2)
    assert comparison.outcome == "different" and comparison.compared == 1  # clocks do not count
    assert [(d.what, d.first, d.second) for d in comparison.differences] == [
        ("sha256 of the weights", "aa", "bb"),
        ("Perplexity, Second pruning (SDS)", 10.0, 11.0),
        ("pattern", "2:4", "50%"),
        ("threads", 1, 2),
        ("torch", "2.9", "2.10"),
    ]
    assert "threads 1 → 2; torch 2.9 → 2.10" in str(comparison)


def test_a_missing_figure_and_a_changed_note_are_differences(queue: Path) -> None:
    made(1, {"perplexity": 10.0, "bits_per_byte": 1.0})
    made(2, {"perplexity": 10.0})
    change(Result, (2, "sds", "perplexity", ""), details={"corpus": "other"})
    differences = {d.what: (d.first, d.second) for d in compare(1, 2).results}
    assert differences["Bits per byte, Second pruning (SDS)"] == (1.0, None)
    assert differences["Perplexity, Second pruning (SDS): corpus"] == ("toystories", "other")


def test_a_setting_that_is_newer_than_the_run_is_no_difference(queue: Path) -> None:
    made(1, {}, config={"pattern": "2:4"})
    made(2, {}, config={"pattern": "2:4", "seed": 0})
    assert compare(1, 2).config == ()


@pytest.mark.parametrize("state", [State.QUEUED, State.FAILED])
def test_nothing_is_said_before_both_have_succeeded(queue: Path, state: State) -> None:
    made(1, {"perplexity": 10.0})
    made(2, {}, state=state, parent=1)
    comparison = reproduced(queries.job(2))
    assert (
        comparison is not None and comparison.outcome == "open" and "after both" in str(comparison)
    )
    assert record(2)["reproduce"]["outcome"] == "open" and record(1)["reproduce"] is None
    assert [job.id for job in queries.reproductions(1)] == [2]


def test_replay_from_a_shell(supervised: SupervisorLoop) -> None:
    words = ("submit", "count", "--steps", "1", "--pause", "0", "--wait")
    assert slimscope(*words, meanwhile=supervised.turn).returncode == 0
    again = ("reproduce", "count-0001", "--wait")
    completed = slimscope(*again, "--json", meanwhile=supervised.turn)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout)["outcome"] == "equal"
    change(Result, (1, "run", "total", ""), value=7.0)
    shown = slimscope("show", "2").stdout
    assert "count-0001 and count-0002 differ" in shown and "7.0" in shown
    completed = slimscope(*again, meanwhile=supervised.turn)
    assert completed.returncode == 4 and "1 different figure." in completed.stdout
