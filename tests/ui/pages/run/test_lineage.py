"""Lineage: from the first model to a run, and to what started from it."""

from __future__ import annotations

from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from tests.ui.lab import job, measured, store
from ui.pages.run.lineage import ancestors


def chain() -> None:
    """toy -> sds-0001 -> dlqat-0002 -> amphista-0003; a benchmark with the drafter; and others."""
    upgrade()
    store(
        job(1), *measured(1, 12.5),
        job(2, kind="dlqat", config={"model": "sds-0001", "bits": 3}, kept_stage="dlqat"),
        job(3, kind="amphista", config={"model": "dlqat-0002"}),
        job(4, kind="benchmark", config={"model": "dlqat-0002", "drafters": "amphista-0003"}),
        job(5, kind="evaluation", config={"model": "sds-0010"}, state="running"),
        job(6, name="sds-0001", note="after sds-0001"),
    )  # fmt: skip


def test_ancestors_and_what_started_from_a_run_are_found(current: Settings) -> None:
    chain()
    found = ancestors(queries.job("amphista-0003"))
    assert [x if isinstance(x, str) else x.run for x in found] == ["toy", "sds-0001", "dlqat-0002"]
    assert ancestors(queries.job("sds-0001")) == ["toy"]
    assert ancestors(queries.job("evaluation-0005")) == ["sds-0010"]  # gone, but named
    assert [x.run for x in queries.runs_from("sds-0001", 9)] == ["dlqat-0002"]
    assert [x.run for x in queries.runs_from("dlqat-0002", 9)] == [
        "benchmark-0004",
        "amphista-0003",
    ]
    assert [x.run for x in queries.runs_from("dlqat-0002", 1)] == ["benchmark-0004"]
    assert [x.run for x in queries.runs_from("amphista-0003", 9)] == ["benchmark-0004"]
