"""A run that was stopped, killed or damaged resumes bit for bit."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.calibration.second_moments import StatisticsLevel
from backend.checkpoints import Checkpoints
from backend.errors import CancelledError, ComputeError, ConfigError, ModelError
from backend.linalg.gram import NotPositiveDefiniteError
from backend.models.blocks import block_linears
from backend.models.loading import weights_hash
from backend.pruning import passes
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.pruners.magnitude import magnitude
from backend.pruning.pruners.registry import PRUNERS, Pruner
from tests.pruning.stages import prune, stage_hashes


def config(**fields: object) -> SDSConfig:
    given = {"precision": "float32", "adjust_steps": 5, "control": True}
    return SDSConfig.model_validate(given | fields)


@pytest.fixture
def ids(calibration: Tensor) -> Tensor:
    return calibration[:16]


@pytest.fixture(scope="module")
def uninterrupted(_toy, tmp_path_factory) -> dict[str, tuple[dict[SDSStage, str], SDSStage]]:
    runs = {}
    for precision in ("float32", "bfloat16"):
        model, folder = deepcopy(_toy[0]), tmp_path_factory.mktemp("whole")
        options = config(precision=precision)
        result = prune(model, _toy[1][:16], options, folder)
        runs[precision] = stage_hashes(model, folder, config()), result.kept
    return runs


def finished(workspace: Path) -> int:
    return len([*workspace.glob("first-*"), *workspace.glob("second-*")])


@pytest.mark.parametrize(
    ("precision", "blocks"), [*(("float32", k) for k in (0, 2, 3, 5)), ("bfloat16", 4)]
)
def test_a_stopped_run_resumes_bit_for_bit(
    precision: str, blocks: int, toy, ids: Tensor, tmp_path: Path, recorder, uninterrupted
) -> None:
    """The run stops when `blocks` of the six checkpoints exist; each pass has three."""
    options = config(precision=precision)
    with pytest.raises(CancelledError):
        stop = recorder(stop=lambda _: finished(tmp_path) >= blocks)
        prune(toy(), ids, options, Checkpoints(tmp_path), stop)
    assert finished(tmp_path) == blocks
    model, recorded = toy(), recorder()
    result = prune(model, ids, options, tmp_path, recorded)
    expected, kept = uninterrupted[precision]
    assert (weights_hash(model), result.kept) == (expected[kept], kept)
    assert stage_hashes(model, tmp_path, config()) == expected
    solved = {(s.block, s.stage) for s in recorded.snapshots}
    assert len(solved) == 4 * max(0, 3 - blocks) + 2 * min(3, 6 - blocks)
    assert recorded.progressed[-1][0] == recorded.progressed[-1][1]


@pytest.mark.parametrize("damaged", ["first-0002", "first-0000", "second-0002"])
def test_a_damaged_block_is_computed_again(
    damaged: str, toy, ids: Tensor, tmp_path: Path, recorder, uninterrupted
) -> None:
    prune(toy(), ids, config(), tmp_path)
    file = next((tmp_path / damaged).glob("s*.safetensors" if "second" in damaged else "r*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    model, recorded = toy(), recorder()
    prune(model, ids, config(), tmp_path, recorded)
    assert stage_hashes(model, tmp_path, config()) == uninterrupted["float32"][0]
    assert {s.block for s in recorded.snapshots} == {int(damaged[-1])}


def test_stored_blocks_have_been_reported(toy, ids: Tensor, tmp_path: Path, recorder) -> None:
    """A job writes its figures before a checkpoint appears; later figures could be lost."""
    recorded, reports = recorder(), []
    checkpoints = Checkpoints(
        tmp_path, lambda: reports.append((len(recorded.snapshots), len(recorded.metrics)))
    )
    prune(toy(), ids, config(), checkpoints, recorded, heldout_share=0)
    first, second = (28, 3), (14, 2)  # figures of one block: 7 linears, 4 or 2 stages
    counts = [(0, 0)]
    for snapshots, metrics in (first, first, first, second, second, second):
        counts.append((counts[-1][0] + snapshots, counts[-1][1] + metrics))
    assert reports == counts


def test_another_run_cannot_use_the_workspace(toy, ids: Tensor, tmp_path: Path) -> None:
    model = toy()
    prune(model, ids, config(), tmp_path)
    other_blocks = [
        (toy(), ids, config(pattern="4:8")),
        (toy(), ids[:8], config()),
        (model, ids, config()),  # pruned already
    ]
    for other in other_blocks:
        with pytest.raises(ConfigError, match="another run"):
            prune(*other, tmp_path)


def test_a_run_resumes_in_its_original_precision(
    toy, ids: Tensor, tmp_path: Path, recorder, monkeypatch: pytest.MonkeyPatch, uninterrupted
) -> None:
    """On a cluster, the next node may have another processor."""
    computes = "backend.models.blocks.computes_bfloat16"
    options = config(precision="auto")
    monkeypatch.setattr(computes, lambda device: True)
    with pytest.raises(CancelledError):
        stop = recorder(stop=lambda _: finished(tmp_path) >= 2)
        prune(toy(), ids, options, tmp_path, stop)
    monkeypatch.setattr(computes, lambda device: False)
    model = toy()
    prune(model, ids, options, tmp_path)
    assert stage_hashes(model, tmp_path, config()) == uninterrupted["bfloat16"][0]


def test_weights_that_are_not_finite_are_refused(toy, ids: Tensor, tmp_path: Path) -> None:
    model = toy()
    block_linears(model, 1)["mlp.up_proj"].layer.weight.data[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        prune(model, ids, config(), tmp_path)


@pytest.mark.parametrize("shape", [(0, 16), (4, 1), (16,)])
def test_unusable_text_is_refused(shape: tuple[int, ...], toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration"):
        prune(toy(), torch.zeros(shape).long(), config(), tmp_path)


def test_overflowing_activations_are_reported_with_the_layer(
    toy, ids: Tensor, tmp_path: Path
) -> None:
    model = toy()
    block_linears(model, 1)["mlp.up_proj"].layer.weight.data.mul_(1e38)
    with pytest.raises(ComputeError, match=r"layers\.1\.mlp\.down_proj"):
        prune(model, ids, config(), tmp_path)


def test_a_diverging_solver_is_reported_with_the_layer(
    toy, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "redense", lambda sparse, *_: sparse * torch.inf)
    with pytest.raises(ComputeError, match=r"layers\.\d\.\S+ is not finite at stage redense"):
        prune(toy(), ids, config(), tmp_path)


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch):
    """Make magnitude pruning require a damping of at least `enough`."""

    def make(enough: float) -> None:
        def prune(W, inputs, pattern, damping):
            if damping < enough:
                raise NotPositiveDefiniteError
            return magnitude(W, inputs, pattern, damping)

        stub = Pruner(prune, StatisticsLevel.NOTHING)
        monkeypatch.setitem(PRUNERS._entries, "magnitude", stub)

    return make


def test_damping_has_a_limit(stubborn, toy, ids: Tensor, tmp_path: Path) -> None:
    stubborn(1e9)
    with pytest.raises(ComputeError, match=r"q_proj could not be pruned") as caught:
        prune(toy(), ids, config(base="magnitude"), tmp_path)
    assert caught.value.do


def test_a_hessian_of_too_little_text_is_damped_with_a_warning(
    toy, ids: Tensor, tmp_path: Path, recorder
) -> None:
    """32 tokens give a matrix of rank 32 or less for layers with 64 and 192 inputs."""
    recorded, model = recorder(), toy()
    options = config(base="sparsegpt", damping=1e-7, until="first", control=False)
    result = prune(model, ids[:2, :16], options, tmp_path, recorded, heldout_share=0)
    raised = [text for text in result.warnings if "not positive definite" in text]
    assert raised and set(raised) <= set(recorded.lines)
    for block in range(3):
        for linear in block_linears(model, block).values():
            W = linear.read()
            assert W.isfinite().all() and ((W.view(-1, 4) != 0).sum(1) <= 2).all()
