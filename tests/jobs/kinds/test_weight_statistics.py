"""Tests of weight statistics jobs: records, resuming and rejected configs."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import backend.models.sources.toy
from backend.checkpoints import Checkpoints
from backend.export.reading import StoredLinears
from backend.models.sources.catalog import inspect
from backend.queue.artifacts import work_folder
from backend.reporter import SilentReporter
from backend.settings import Settings
from backend.statistics.tensors import TensorSnapshot
from backend.store import frames, queries, tensors
from backend.store.states import State
from jobs.runtime.context import JobContext
from jobs.submit import submit
from jobs.weight_statistics.kind import StatisticsJob
from jobs.weight_statistics.run import measure_block
from tests.queue.conftest import HOST, Wait, succeeded

TOY = Path(backend.models.sources.toy.__file__).parent
TENSOR = "model.layers.1.mlp.up_proj.weight"


def test_every_matrix_is_measured_as_it_lies_in_the_file(wait: Wait) -> None:
    job = succeeded(wait, "statistics", {"model": "toy"})
    table = frames.tensor_table(job.id)
    assert len(table) == 21 and {*table["stage"]} == {"dense"}
    weights = {k: v.float().numpy() for k, v in load_file(TOY / "model.safetensors").items()}
    for row in table.itertuples():
        weight = weights[row.tensor]
        assert row.n == weight.size and row.zeros == (weight == 0).sum()
        assert row.std == pytest.approx(weight.std(), rel=1e-4)
    norms = next(p for p in tensors.profiles(job.id, TENSOR, "row_norm"))
    assert norms.values == pytest.approx(np.linalg.norm(weights[TENSOR], axis=1), rel=3e-4)
    (share,) = [r.value for r in queries.results([job.id]) if str(r.metric) == "zero_share"]
    assert share == table["zeros"].sum() / table["n"].sum()
    assert not work_folder(job.run).exists()


def test_a_folder_means_the_same_wherever_the_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOY.parent)
    assert StatisticsJob(model="./toy").model == str(TOY)
    assert StatisticsJob(model=" toy ").model == "toy"


def test_a_damaged_model_is_named(wait: Wait, current: Settings) -> None:
    copy = current.root / "models" / "copy"
    copy.mkdir(parents=True)
    for file in TOY.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    weights = load_file(copy / "model.safetensors")
    weights[TENSOR][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    job = submit("statistics", {"model": str(copy)}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    error = queries.job(job.id).error
    assert error and error["what"] == "model.layers.1.mlp.up_proj has values that are not finite."
    assert TENSOR not in set(frames.tensor_table(job.id)["tensor"])


class SnapshotContext(SilentReporter):
    """A context that keeps the snapshots."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints, self.snapshots = Checkpoints(folder), list[TensorSnapshot]()

    def snapshot(self, snapshot: TensorSnapshot) -> None:
        self.snapshots.append(snapshot)


def test_a_block_an_earlier_attempt_has_measured_is_not_read_again(tmp_path: Path) -> None:
    linears = StoredLinears(TOY, inspect("toy").linears)
    first, second = SnapshotContext(tmp_path), SnapshotContext(tmp_path)
    zeros = measure_block(linears, 0, "cpu", cast(JobContext, first))
    assert len(first.snapshots) == 7 and zeros == sum(s.zeros for s in first.snapshots)
    unread = cast(StoredLinears, None)
    assert measure_block(unread, 0, "cpu", cast(JobContext, second)) == zeros
    assert second.snapshots == []
