"""What a load test copies is the run it says, and leaves that run as it was."""

from __future__ import annotations

import pytest

from backend.store import frames, queries
from backend.store.session import writing
from backend.store.tables import Job, Result, TensorRow
from benchmarks.screen.load import many_runs, many_tensors


@pytest.fixture
def one_run(tables: object) -> None:
    """A run with one figure, and three tensors in two blocks."""
    job = Job(id=1, kind="sds", owner="me", config={"model": "toy", "seed": 0}, config_hash="",
              state="succeeded", created_at=1, queued_at=1)  # fmt: skip
    held = [(0, "mlp.up"), (0, "mlp.down"), (1, "mlp.up")]
    tensors = [
        TensorRow(job_id=1, tensor=f"layers.{block}.{module}.weight", stage="dense", block=block,
                  module=module, n=4, zeros=0, below=0, above=0, lo=-1.0, hi=1.0, counts=b"",
                  stats={}, quantiles=[])
        for block, module in held
    ]  # fmt: skip
    with writing() as session:
        session.add(job)
        session.flush()
        session.add_all([Result(job_id=1, stage="sds", family="perplexity", value=2.0), *tensors])


def test_a_run_is_copied_with_its_figures(one_run: None) -> None:
    many_runs(5)
    jobs = queries.jobs()
    assert [job.id for job in jobs] == [5, 4, 3, 2, 1]
    assert {job.config["seed"] for job in jobs} == {0, 2, 3, 4, 5}
    values = [row.value for row in queries.results([1, 2, 3, 4, 5])]
    assert values[0] == 2.0 and len(set(values)) == 5
    many_runs(6)
    assert [row.value for row in queries.results([1])] == [2.0]


def test_blocks_are_copied_below_one_another(one_run: None) -> None:
    many_tensors(8)
    table = frames.tensor_table(1)
    assert len(table) == 9 and sorted(table["block"].unique()) == [0, 1, 2, 3, 4, 5]
    last = table[table["block"] == 5].iloc[0]
    assert (last["tensor"], last["module"]) == ("layers.5.mlp.up.weight", "mlp.up")
