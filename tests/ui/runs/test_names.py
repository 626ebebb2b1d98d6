"""Names of runs that are shown together."""

import pytest

from tests.ui.conftest import HOSTILE
from tests.ui.lab import job
from ui.runs.names import MAX_LETTERS, run_labels, shared_description

WANDA = {"model": "toy", "pattern": "2:4", "base": "wanda", "seed": 0, "control": True}


@pytest.mark.parametrize(
    ("changes", "labels"),  # no labels: the names "run 1" and "run 2"
    [
        ([{}, {"pattern": "50%"}], ["2:4", "50%"]),
        ([{}, {"pattern": "50%", "base": "alps"}], ["2:4 · wanda", "50% · alps"]),
        ([{}, {"control": False}], ["fixed-mask control", "no fixed-mask control"]),
        ([{}, {"seed": 3}], ["seed 0", "seed 3"]),
        ([{}, {}], None),
        ([{}, {}, {"pattern": "50%"}], ["2:4 · sds-0001", "2:4 · sds-0002", "50%"]),
        ([{}, {"pattern": HOSTILE}], None),
        ([{}, {"layers": {"a": ["x" * MAX_LETTERS]}}], None),
    ],
)
def test_runs_are_named_by_the_settings_that_differ(
    changes: list[dict[str, object]], labels: list[str] | None
) -> None:
    jobs = [job(n, config=WANDA | change) for n, change in enumerate(changes, 1)]
    assert [*run_labels(jobs).values()] == (labels or [each.name for each in jobs])
    for each in jobs:
        each.name = HOSTILE
    assert [*run_labels(jobs).values()] == (labels or [each.run for each in jobs])


def test_runs_of_several_kinds_are_named_by_kind_and_share_their_model() -> None:
    jobs = [job(1), job(2, config=WANDA | {"pattern": "50%"}), job(3, kind="benchmark")]
    assert [*run_labels(jobs).values()] == ["SDS pruning · 2:4", "SDS pruning · 50%", "Benchmark"]
    assert shared_description(jobs[:2]) == "SDS pruning · toy · wanda"
    assert "toy" in shared_description(jobs) and "SDS" not in shared_description(jobs)
