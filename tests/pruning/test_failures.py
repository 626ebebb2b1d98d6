"""Errors of a run name the layer or the step, and the field to change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend.calibration.second_moments import StatisticsLevel
from backend.errors import ComputeError, ConfigError, ModelError
from backend.linalg.gram import NotPositiveDefiniteError
from backend.models import loading
from backend.models.blocks import block_linears
from backend.pruning.config import SDSConfig
from backend.pruning.pruners.registry import Pruner
from tests.pruning.stages import prune

CONFIG = SDSConfig.model_validate({"precision": "float32", "adjust_steps": 5})


@pytest.mark.parametrize("read", [loading._load_full, loading._load_streamed])
@pytest.mark.parametrize(
    ("factor", "error", "layer"),
    [(torch.nan, ModelError, "up_proj"), (1e38, ComputeError, "down_proj")],
)
def test_what_is_not_finite_is_reported_with_its_layer(
    factor: float,
    error: type[Exception],
    layer: str,
    read: Callable[..., Any],
    toy,
    calibration: Tensor,
    tmp_path: Path,
) -> None:
    """Weights are reported before any work, and activations where they overflow."""
    model = toy()
    block_linears(model, 1)["mlp.up_proj"].layer.weight.data[3].mul_(factor)
    model.save_pretrained(tmp_path / "model")
    loaded = read(tmp_path / "model", torch.float32, torch.device("cpu"))[0].eval()
    with pytest.raises(error, match=rf"layers\.1\.mlp\.{layer}"):
        prune(loaded, calibration[:8], CONFIG, tmp_path / "run")
    assert error is ComputeError or not [*(tmp_path / "run").rglob("*")]


@pytest.mark.parametrize("shape", [(0, 16), (4, 1), (16,)])
def test_unusable_text_is_refused(shape: tuple[int, ...], toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration"):
        prune(toy(), torch.zeros(shape).long(), CONFIG, tmp_path)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


INDEFINITE = {"wanda": Pruner(failing(NotPositiveDefiniteError()), StatisticsLevel.NOTHING)}
SOLVER, BLOCK = "block_work.BlockWork._prune_linear", "Out of memory: pruning of block 1 of 3"
NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("place", "replacement", "error", "message", "field"),
    [
        ("block_work.PRUNERS", INDEFINITE, ComputeError, "q_proj could not be pruned", "damping"),
        (
            "passes.redense",
            lambda sparse, *_: sparse * torch.inf,
            ComputeError,
            r"layers\.\d\.\S+ is not finite at stage redense",
            "damping",
        ),
        (SOLVER, failing(MemoryError("no more")), ComputeError, BLOCK, "weights"),
        (SOLVER, failing(NO_MEMORY), ComputeError, BLOCK, "weights"),
        (
            SOLVER,
            failing(torch.OutOfMemoryError("CUDA out of memory.")),
            ComputeError,
            BLOCK,
            "weights",
        ),
        (SOLVER, failing(RuntimeError("shapes differ")), RuntimeError, "shapes differ", None),
        ("sds.heldout_losses", failing(NO_MEMORY), ComputeError, "held-out losses", "context"),
        (
            "block_work.ReferenceTensor.measure",
            failing(NO_MEMORY),
            ComputeError,
            "statistics of block 1 of 3",
            "weights",
        ),
    ],
)
def test_a_step_that_fails_is_named_with_the_field_to_change(
    place: str,
    replacement: Any,
    error: type[Exception],
    message: str,
    field: str | None,
    threads: int,
    toy,
    calibration: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(f"backend.pruning.{place}", replacement)
    with pytest.raises(error, match=message) as caught:
        prune(toy(), calibration[:8], CONFIG, tmp_path)
    assert getattr(caught.value, "field", None) == field
    assert error is RuntimeError or (caught.value.why and caught.value.do)


def test_a_hessian_of_too_little_text_is_damped_with_a_warning(
    toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    """32 tokens give a matrix of rank 32 or less for layers with 64 and 192 inputs."""
    recorded, model = recorder(), toy()
    options = SDSConfig(base="sparsegpt", damping=1e-7, until="first", precision="float32")
    result = prune(model, calibration[:2, :16], options, tmp_path, recorded, heldout_share=0)
    raised = [text for text in result.warnings if "not positive definite" in text]
    assert raised and set(raised) <= set(recorded.lines)
    for block in range(3):
        for linear in block_linears(model, block).values():
            W = linear.read()
            assert W.isfinite().all() and ((W.view(-1, 4) != 0).sum(1) <= 2).all()
