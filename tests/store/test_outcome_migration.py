"""Migration 0005: a database of the revision before shows the same figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import JSON, bindparam, text

from backend.settings import settings
from backend.store import migrate, queries
from backend.store.migrate import current_revision, newest_revision, upgrade
from backend.store.session import engine_for
from jobs.record import record
from jobs.runtime.duration import START_S, estimate_seconds
from jobs.speed.report import decoder_reports, verdicts

VANILLA_PARTS = {"draft": 0.0, "verify": 20.0, "accept": 0.0, "cache": 0.0}
PARTS = {"draft": 3.0, "verify": 24.0, "accept": 0.5, "cache": 0.5}
JOB = text(
    "INSERT INTO jobs (id, kind, name, owner, config, config_hash, environment, priority, state,"
    " desired, attempts_made, retries_left, not_before, created_at, queued_at, started_at,"
    " finished_at, done, total, stage) VALUES (:id, :kind, '', 'mira', '{\"model\": \"toy\"}', '',"
    " '{}', 0, 'succeeded', 'run', 1, 0, 0, 0, 0, 1000, :ended, 1, 1, 'done')"
)
RESULT = text(
    "INSERT INTO results VALUES (:job, :stage, :metric, :value, NULL, :n, :details)"
).bindparams(bindparam("details", type_=JSON))
COLUMNS = ("job", "stage", "metric", "value", "n", "details")
pytestmark = pytest.mark.no_tables


def decoder(name: str, kind: str, up: float, hits: dict[str, float]) -> list[tuple[Any, ...]]:
    """The rows that a speed run used to write for one decoder."""
    span = {"lowest": up - 0.1, "highest": up + 0.1}
    rows: list[tuple[str, float, dict[str, Any]]] = [
        ("tokens_per_second", 50 * up, {"lowest": 40.0, "highest": 60.0, "prompts": 12}),
        ("speed_up", up, {**span, "nodes": 8 if kind else 1, "arm": kind}),
        ("accepted_length", 1.4, {"lengths": {"1": 6, "2": 4}, **({"hits": hits} if hits else {})}),
        ("break_even", 1.4 if kind else 1.0, {"milliseconds": PARTS if kind else VANILLA_PARTS}),
        ("same_text", 0.75, {"first_difference": 4}),
        ("speed_up/math", up + 0.1, {**span, "accepted": 1.5}),
    ]
    return [(2, name, metric, value, 12, details) for metric, value, details in rows]


ROWS: list[tuple[Any, ...]] = [
    (1, "dense", "perplexity", 21.0, 100, {"corpus": "toystories"}),
    (1, "sds", "perplexity", 25.0, 100, {"corpus": "toystories"}),
    (1, "run", "kept", 1.0, None, {"kept": "sds"}),
    (1, "run", "work", 1e12, None, {}),
    (1, "run", "seconds/Re-densify", 3.5, None, {}),
    (1, "run", "seconds/Prune", 7.0, None, {}),
    (2, "run", "tokens_per_second", 60.0, None, {"of": "Amphista (amphista-0009)"}),
    (2, "run", "work", 2e12, None, {}),
    (3, "run", "work", 1e9, None, {"timed": 60.0}),
    *decoder("vanilla", "", 1.0, {}),
    *decoder("amphista-0009", "Amphista", 1.2, {"0": 0.5, "0.1": 0.25}),
]


@pytest.fixture
def old(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose database was made by revision 0004."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "newest_revision", lambda: "0004")
        patch.setattr(command, "upgrade", partial(_upgrade_to, command.upgrade, "0004"))
        upgrade()
    with engine_for(settings().url).begin() as database:
        for number, kind, seconds in ((1, "sds", 30), (2, "speed", 30), (3, "amphista", 100)):
            ended = 1000 + int(1000 * (START_S + seconds))
            database.execute(JOB, {"id": number, "kind": kind, "ended": ended})
        database.execute(RESULT, [dict(zip(COLUMNS, row, strict=True)) for row in ROWS])
    return data_dir


def _upgrade_to(alembic_upgrade: Callable[..., None], revision: str, config: Any, _: str) -> None:
    alembic_upgrade(config, revision)


def test_an_old_database_shows_the_same_figures(old: Path) -> None:
    upgrade()
    assert current_revision() == newest_revision()
    pruned = record(1)
    assert (pruned["kept_stage"], pruned["flops"], pruned["timed_seconds"]) == ("sds", 1e12, None)
    assert pruned["timings"] == {"Prune": 7.0, "Re-densify": 3.5, "peak_bytes": None}
    assert [(r["stage"], r["value"], r["corpus"]) for r in pruned["results"]] == [
        ("dense", 21.0, "toystories"), ("sds", 25.0, "toystories"),
    ]  # fmt: skip
    assert queries.job(3).timed_seconds == 60.0
    seconds, _ = estimate_seconds("amphista", "toy", 1e9, timed_seconds=60)
    assert seconds == pytest.approx(START_S + 60 + 40)
    engine_for.cache_clear()


def test_decoders_of_an_old_speed_run_are_reported(old: Path) -> None:
    upgrade()
    vanilla, drafter = decoder_reports(2)
    assert (vanilla.name, vanilla.speed, vanilla.hits) == ("vanilla", 50.0, {})
    assert (drafter.label, drafter.nodes, drafter.speed_up) == ("Amphista (amphista-0009)", 8, 1.2)
    assert drafter.hits == {(0,): 0.5, (0, 1): 0.25} and drafter.lengths == {1: 6, 2: 4}
    assert (drafter.same, drafter.prompts, drafter.first_difference) == (0.75, 12, 4)
    assert drafter.ranges["speed_up"] == pytest.approx((1.1, 1.3))
    assert drafter.ranges["speed_up/math"] == pytest.approx((1.1, 1.3))
    assert drafter.tasks == {"math": (pytest.approx(1.3), 1.5)}
    assert drafter.milliseconds == PARTS
    (sentence,) = verdicts([vanilla, drafter])[:1]
    assert "1.20× (1.10 to 1.30)" in sentence and "9 of 12 responses" in sentence
    figures = {(r.stage, r.metric): r for r in queries.results([2])}
    assert figures["amphista-0009", "speed_up/math"].value == pytest.approx(1.3)
    assert figures["amphista-0009", "speed_up"].details == pytest.approx(
        {"lowest": 1.1, "highest": 1.3}
    )
    assert figures["run", "tokens_per_second"].details == {"of": "Amphista (amphista-0009)"}
    engine_for.cache_clear()


def test_the_way_back_keeps_the_figures(old: Path) -> None:
    upgrade()
    engine_for.cache_clear()
    config = migrate.alembic_config()
    command.downgrade(config, "0004")
    kept = text("SELECT job_id, metric, value FROM results WHERE stage = 'run'")
    with engine_for(settings().url).connect() as database:
        rows = {tuple(row) for row in database.execute(kept)}
    assert {(1, "kept", 1.0), (1, "work", 1e12), (1, "seconds/Prune", 7.0)} <= rows
    engine_for.cache_clear()
