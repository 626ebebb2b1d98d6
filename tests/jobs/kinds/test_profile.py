"""A sensitivity profile as a job: what it stores, how it goes on, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from backend.errors import ConfigError, NotFoundError
from backend.store import queries
from backend.store.states import State
from jobs.operations.budget import budget
from jobs.profile.profiles import newest_profile, profile_of_run
from jobs.submit import submit
from tests.queue.conftest import HOST, Wait

SMALL = {
    "model": "toy", "context": 32, "segments": 4,
    "formats": "int2-g64, int4-g64, 50%, 2:4", "measured": "int2-g64, 50%",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"formats": "int4-g50", "measured": ""}, "formats", "int4-g50 fits no layer"),
        ({"formats": "int9-g64"}, "formats", "9 bits are not offered"),
        ({"formats": ""}, "formats", "0 formats are not possible"),
        ({"measured": "70%"}, "measured", "70% is not among the formats"),
        ({"windows": 9}, "windows", "8 held-out windows, not 9"),
        ({"holdout": 0}, "holdout", "Nothing is held out"),
        ({"calibration_text": "self"}, "calibration_text", "not taken on text that the model"),
        ({"context": 4096}, "context", "does not fit"),
    ],
)
def test_what_cannot_work_is_refused_beside_its_field(
    queue: object, changed: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        submit("profile", SMALL | changed, HOST)
    assert refused.value.field == field
    assert said in str(refused.value)


def test_a_profile_is_measured_once_and_answers_budgets(wait: Wait) -> None:
    with pytest.raises(NotFoundError, match="no sensitivity profile of toy"):
        budget("toy", bits="3")
    job = submit("profile", SMALL, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED, queries.job(job.id).error
    profile = newest_profile("toy")
    assert profile.run == job.run and len(profile.layers) == 21
    kl, error = profile.figure("kl"), profile.figure("error")
    assert np.isfinite(kl).tolist() == [[True, False, True, False]] * 21
    assert (kl[np.isfinite(kl)] > 0).all() and (error > 0).all()
    assert (error[:, 0] > error[:, 1]).all()
    told = {str(r.metric): r.value for r in queries.results([job.id])}
    assert told["rank_correlation/fisher"] > 0.6
    answer = budget("toy", bits="3.25", pin="0.mlp.down_proj=int4-g64")
    assert answer["bits"] <= 3.25
    assert answer["layers"]["model.layers.0.mlp.down_proj"] == "int4-g64"
    assert {*answer["formats"]} <= {"int2-g64", "int4-g64", "dense"}
    assert budget("toy", sparsity="40%")["sparsity"] >= 0.4
    for wrong in ({}, {"bits": "3", "size": "1MB"}, {"bits": "x"}, {"bits": "3", "pin": "no=50%"}):
        with pytest.raises(ConfigError):
            budget("toy", **wrong)


def test_other_runs_are_no_profiles(queue: object) -> None:
    other = submit("statistics", {"model": "toy"}, HOST)
    with pytest.raises(ConfigError, match="is no sensitivity profile"):
        profile_of_run(other.run)
    waiting = submit("profile", SMALL, HOST)
    with pytest.raises(ConfigError, match="has measured no layer yet"):
        profile_of_run(waiting.run)
