"""Tests of reproductions: original settings, equal results, and all kinds of differences."""

import json
from pathlib import Path

import pytest

from backend.metric_key import MetricKey
from backend.models.sources.toy.stories import stories
from backend.queue.supervisor import SupervisorLoop
from backend.settings import settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Result
from jobs.record import record
from jobs.reproduction import compare, reproduce, reproduced
from tests.conftest import Given
from tests.jobs.kinds.test_sds import SMALL
from tests.queue.conftest import HOST, Wait, bare_job, succeeded
from tests.rows import change
from tests.shell import slimscope


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
    values = {**SMALL, "calibration_text": "file:own.txt", "control": False}
    first = succeeded(wait, "sds", values)

    monkeypatch.delenv("SLIMSCOPE_TEXT_DIR")  # the settings are frozen with the run
    settings.cache_clear()
    second = reproduce(first.run, HOST)
    assert second.environment["settings"]["SLIMSCOPE_TEXT_DIR"] == str(tmp_path)
    assert wait(second.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    same = compare(first.run, second.run)
    assert same.outcome == "equal" and same.compared > 15, str(same)
    assert same.differences == []

    text.write_text("\n\n".join(stories(6, 400)))
    third = reproduce(first.run, HOST)
    assert wait(third.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    changed = compare(first.run, third.run)
    assert changed.outcome == "different" and changed.weights is not None
    assert [t.what for t in changed.texts] == ["held-out text", "calibration text"]
    assert "different weights, different held-out text, different calibration text" in str(changed)
    dense = [d for d in changed.results if d.what.startswith("Perplexity, Dense")]
    assert dense == []  # measured on the evaluation text, which is the same


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
