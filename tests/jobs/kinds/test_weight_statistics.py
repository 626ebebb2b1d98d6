"""Tests of weight statistics jobs: records, resuming and rejected configs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from backend.checkpoints import Checkpoints
from backend.export.reading import StoredLinears
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.queue.artifacts import work_folder
from backend.settings import Settings
from backend.store import frames, queries, tensors
from backend.store.states import State
from jobs.submit import submit
from jobs.weight_statistics.kind import StatisticsJob
from jobs.weight_statistics.run import measure_block
from tests.queue.conftest import HOST, Wait, succeeded
from tests.toy_layers import Recorder

TENSOR = "model.layers.1.mlp.up_proj.weight"


def test_every_matrix_is_measured_as_it_lies_in_the_file(wait: Wait) -> None:
    job = succeeded(wait, "statistics", {"model": "toy"})
    table = frames.tensor_table(job.id)
    assert len(table) == 21 and {*table["stage"]} == {"dense"}
    weights = {k: v.float().numpy() for k, v in load_file(TOY_FOLDER / "model.safetensors").items()}
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
    monkeypatch.chdir(TOY_FOLDER.parent)
    assert StatisticsJob(model="./toy").model == str(TOY_FOLDER)
    assert StatisticsJob(model=" toy ").model == "toy"


def test_a_damaged_model_is_named(wait: Wait, current: Settings) -> None:
    copy = current.root / "models" / "copy"
    shutil.copytree(TOY_FOLDER, copy)
    weights = load_file(copy / "model.safetensors")
    weights[TENSOR][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    job = submit("statistics", {"model": str(copy)}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    error = queries.job(job.id).error
    assert error and error["what"] == "model.layers.1.mlp.up_proj has values that are not finite."
    assert TENSOR not in set(frames.tensor_table(job.id)["tensor"])


def test_a_block_an_earlier_attempt_has_measured_is_not_read_again(tmp_path: Path) -> None:
    linears, first, second = (
        StoredLinears(TOY_FOLDER, inspect("toy").linears),
        Recorder(),
        Recorder(),
    )
    first.checkpoints = second.checkpoints = Checkpoints(tmp_path)
    zeros = measure_block(linears, 0, "cpu", first)
    assert len(first.snapshots) == 7 and zeros == sum(s.zeros for s in first.snapshots)
    assert measure_block(None, 0, "cpu", second) == zeros and second.snapshots == []
