"""Whole runs on the stand-in accelerator."""

from typing import Any

import pytest

from backend.queue.artifacts import read_log
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.submit import submit
from tests.queue.conftest import HOST, Wait

TEXT = {"model": "toy", "segments": 4, "context": 64, "windows": 4, "threads": 1}
SDS = TEXT | {"base": "alps", "pattern": "2:4", "adjust_steps": 2, "redense_steps": 2}
RUNS: dict[str, dict[str, Any]] = {
    "sds": SDS | {"control": True},
    "dlqat": TEXT | {"stages": "gptq, block-wise, dlqat-kd", "start": "block-wise", "steps": 2},
    "profile": TEXT | {"model": "toy"},
    "amphista": {
        "model": "toy",
        "answers": 8,
        "heldout": 4,
        "answer_tokens": 8,
        "minutes": 0,
        "steps": 4,
        "batch": 4,
        "threads": 1,
        "draft_vocabulary": 64,
    },
}


def ended(job: Job, wait: Wait) -> Job:
    state = wait(job.id, State.SUCCEEDED, State.FAILED)
    attempt = queries.attempts(job.id)[-1].n
    assert state == State.SUCCEEDED, read_log(job.run, attempt, 0, 100_000)[0]
    return queries.job(job.id)


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_ends_on_the_accelerator(kind: str, wait: Wait) -> None:
    job = ended(submit(kind, RUNS[kind], HOST), wait)
    assert job.environment["device"] == "Stand-in accelerator"
