"""Migration 0012: the grid of older DL-QAT runs has its present name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from backend.settings import settings
from backend.store import migrate, queries
from backend.store.migrate import current_revision, newest_revision, upgrade
from backend.store.session import engine_for
from backend.store.tables import config_hash
from jobs.kind import kind_named
from tests.store.test_outcome_migration import _upgrade_to

JOB = text(
    "INSERT INTO jobs (id, kind, name, owner, config, config_hash, environment, priority, state,"
    " desired, attempts_made, retries_left, not_before, created_at, queued_at, done, total, stage)"
    " VALUES (:id, :kind, '', 'mira', :config, 'old', '{}', 0, 'succeeded', 'run', 1, 0, 0, 0, 0,"
    " 1, 1, '')"
)
pytestmark = pytest.mark.no_tables


def test_old_runs_say_their_grid(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "newest_revision", lambda: "0011")
        patch.setattr(command, "upgrade", partial(_upgrade_to, command.upgrade, "0011"))
        upgrade()
    plain = {"model": "toy", "bits": 3}
    configs = [
        ("dlqat", {**plain, "symmetric": True, "rank": 4}), ("dlqat", {"symmetric": False}),
        ("dlqat", plain), ("plugin", {"symmetric": True}),
    ]  # fmt: skip
    with engine_for(settings().url).begin() as database:
        for number, (kind, config) in enumerate(configs, 1):
            database.execute(JOB, {"id": number, "kind": kind, "config": json.dumps(config)})
    upgrade()
    assert current_revision() == newest_revision()
    jobs = [queries.job(number) for number in range(1, 5)]
    assert list(jobs[0].config.items())[-2:] == [("grid", "symmetric"), ("rank", 4)]
    assert [job.config for job in jobs[1:]] == [{"grid": "zero-point"}, plain, configs[3][1]]
    assert jobs[0].config_hash == config_hash("dlqat", jobs[0].config)
    assert jobs[3].config_hash == "old"
    assert kind_named("dlqat").config.model_validate(jobs[0].config).grid == "symmetric"
    engine_for.cache_clear()
