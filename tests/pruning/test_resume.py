"""A run that was stopped, killed or damaged resumes bit for bit; no other run takes its place."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import CancelledError, ConfigError
from backend.models.loading import load, weights_hash
from backend.pruning.config import SDSConfig, SDSStage
from tests.conftest import ALL
from tests.pruning.stages import prune, stage_hashes
from tests.toy_layers import Recorder

Outcome = tuple[dict[SDSStage, str], SDSStage, list[tuple[str, float, int]]]
FEW = {"redense_steps": 5, "adjust_steps": 2, "control": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "owl": {"precision": "float32", "pattern": "60%", "allocation": "owl"},
    "blocks": {"precision": "float32", "reconstruct": 2},
    "blocks on disk": {"precision": "float32", "reconstruct": 2, "activations": "disk"},
}


def config(name: str, **fields: object) -> SDSConfig:
    return SDSConfig.model_validate({**FEW, **OPTIONS[name], **fields})


@pytest.fixture
def ids(calibration: Tensor) -> Tensor:
    return calibration[:12]


@pytest.fixture(scope="module")
def uninterrupted(_toy, tmp_path_factory) -> Callable[[str], Outcome]:
    """Return a function: stages, kept stage and metrics of an uninterrupted run."""

    @cache
    def run(name: str) -> Outcome:
        model, folder, recorded = deepcopy(_toy[0]), tmp_path_factory.mktemp("whole"), Recorder()
        result = prune(model, _toy[1][:12], config(name), folder, recorded)
        kept = weights_hash(model)
        hashes = stage_hashes(model, folder, config(name))
        assert hashes[result.kept] == kept
        return hashes, result.kept, recorded.metrics

    return run


@pytest.mark.parametrize(
    ("name", "counts", "streamed"),
    [
        *(("float32", (count,), False) for count in ((0, 2, 3, 5) if ALL else (2,))),
        ("float32", (1, 3, 5), True),
        *[("bfloat16", (4,), False)] * ALL,
        ("owl", (1, 3, 4), False),  # during the outlier pass, after it, and in the first pass
        *[("blocks", (7, 11), False)] * ALL,  # in either pass of reconstruction
        ("blocks on disk", (7, 11), False),
    ],
)
def test_a_stopped_run_resumes_bit_for_bit(
    name: str, counts: tuple[int, ...], streamed: bool, toy, ids, tmp_path: Path, uninterrupted
) -> None:
    """Each attempt ends when so many blocks are stored; `streamed`: every other one is streamed."""
    models = [toy, lambda: load("toy", streamed=True).model if streamed else toy()]
    metrics = []
    for attempt, count in enumerate(counts):
        stop = Recorder(stop=lambda _, n=count: len([*tmp_path.glob("*-0*")]) >= n)
        with pytest.raises(CancelledError):
            prune(models[1 - attempt % 2](), ids, config(name), tmp_path, stop)
        assert len([*tmp_path.glob("*-0*")]) == count
        metrics += stop.metrics
    model, recorded = toy(), Recorder()
    result = prune(model, ids, config(name), tmp_path, recorded)
    assert recorded.progressed[-1][0] == recorded.progressed[-1][1]
    hashes = stage_hashes(model, tmp_path, config(name))
    metrics = [*dict.fromkeys(metrics + recorded.metrics)]  # OWL's shares are told by each attempt
    assert (hashes, result.kept, metrics) == uninterrupted(name)


@pytest.mark.parametrize("damaged", ["first-0000", "second-0002"])
def test_a_damaged_block_is_computed_again(
    damaged: str, toy, ids, tmp_path: Path, uninterrupted
) -> None:
    prune(toy(), ids, config("float32"), tmp_path)
    file = next((tmp_path / damaged).glob("s*.safetensors" if "second" in damaged else "r*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    model, recorded = toy(), Recorder()
    prune(model, ids, config("float32"), tmp_path, recorded)
    assert stage_hashes(model, tmp_path, config("float32")) == uninterrupted("float32")[0]
    assert {s.block for s in recorded.snapshots} == {int(damaged[-1])}


def test_stored_blocks_have_been_reported(toy, ids, tmp_path: Path) -> None:
    """A job writes its figures before a checkpoint appears; later figures could be lost."""
    recorded, reports = Recorder(), []
    checkpoints = Checkpoints(
        tmp_path, lambda: reports.append((len(recorded.snapshots), len(recorded.metrics)))
    )
    prune(toy(), ids, config("float32"), checkpoints, recorded, heldout_share=0)
    first, second = (28, 3), (14, 2)  # figures of one block: 7 linears, 4 or 2 stages
    counts = [(0, 0)]
    for snapshots, metrics in (first, first, first, second, second, second):
        counts.append((counts[-1][0] + snapshots, counts[-1][1] + metrics))
    assert reports == counts


def test_another_run_cannot_use_the_workspace(toy, ids, tmp_path: Path) -> None:
    model, options = toy(), config("float32")
    prune(model, ids, options, tmp_path)
    for other in (
        (toy(), ids, config("float32", pattern="4:8")),
        (toy(), ids[:8], options),
        (model, ids, options),  # pruned already
    ):
        with pytest.raises(ConfigError, match="another run"):
            prune(*other, tmp_path)


def test_a_run_resumes_in_its_original_precision(
    toy, ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted
) -> None:
    """On a cluster, the next node may have another processor."""
    computes, options = "backend.models.blocks.computes_bfloat16", config("bfloat16")
    automatic = config("bfloat16", precision="auto")
    monkeypatch.setattr(computes, lambda device: True)
    with pytest.raises(CancelledError):
        stop = Recorder(stop=lambda _: any(tmp_path.glob("first-0001")))
        prune(toy(), ids, automatic, tmp_path, stop)
    monkeypatch.setattr(computes, lambda device: False)
    model = toy()
    prune(model, ids, automatic, tmp_path)
    assert stage_hashes(model, tmp_path, options) == uninterrupted("bfloat16")[0]
