"""Runs of every method that are killed end as if they had not been."""

from pathlib import Path

import pandas as pd
import pytest

from backend.queue import service
from backend.queue.artifacts import work_folder
from backend.queue.supervisor import SupervisorLoop
from backend.store import frames, queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.benchmark.report import decoder_reports
from jobs.metrics import COST, MEMORY, PROCESSOR, TREE
from jobs.reproduction import compare
from jobs.submit import submit
from tests.jobs.kinds import test_amphista, test_benchmark_kind, test_dlqat, test_sds
from tests.queue.conftest import HOST, Wait, process_of

KILLS = {  # kind -> its config, and the checkpoints at which its process is killed
    "sds": ({**test_sds.SMALL, "segments": 4, "windows": 2}, ["second-*"]),
    "dlqat": (
        {**test_dlqat.SMALL, "steps": 24, "windows": 2, "sample_tokens": 0},
        ["gptq-0001", "train-dlqat-0-0"],
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
    """The last attempt is a process as in production, which shares nothing with the others."""
    monkeypatch.setattr(service, "RETRIES", 3)
    config, places = KILLS[kind]
    whole, killed = (submit(kind, config, HOST).id for _ in range(2))
    assert wait(whole, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    for attempt, place in enumerate(places, 1):
        work = work_folder(queries.job(killed).run)
        wait(killed, when=lambda work=work, place=place: any(work.glob(place)))
        assert queries.job(killed).attempts_made == attempt
        loop.engine.again = attempt < len(places)
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
