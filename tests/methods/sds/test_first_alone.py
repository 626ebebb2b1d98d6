"""A run that stops after the first pruning makes its stages, and keeps the better one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import NotFoundError
from backend.methods.sds.config import SDSConfig, SDSStage
from backend.methods.sds.heldout import choose, verdict
from backend.methods.sds.pipeline import install, run_sds
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter


def config(**fields: object) -> SDSConfig:
    return SDSConfig.model_validate({"precision": "float32", "adjust_steps": 5, **fields})


@pytest.mark.parametrize("control", [True, False])
def test_a_run_may_end_with_the_first_pruning(
    control: bool, toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    told, chosen = recorder(), config(until="first", control=control)
    model = toy()
    result = run_sds(model, calibration[:16], chosen, Checkpoints(tmp_path / "first"), told)
    made = [SDSStage.DENSE, SDSStage.FIRST] + [SDSStage.CONTROL] * control
    assert chosen.stages == made and list(result.heldout) == made
    assert {s.stage for s in told.snapshots} == set(made)
    assert result.kept in made[1:] and told.progressed[-1][0] == told.progressed[-1][1]
    with pytest.raises(NotFoundError):
        install(model, Checkpoints(tmp_path / "first"), SDSStage.SDS)
    whole = toy()
    run_sds(whole, calibration[:16], config(), Checkpoints(tmp_path / "sds"), SilentReporter())
    for stage in made:
        weights = []
        for one, folder in ((model, "first"), (whole, "sds")):
            install(one, Checkpoints(tmp_path / folder), stage)
            weights.append([x.read() for b in range(3) for x in block_linears(one, b).values()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_of_the_first_pruning_too_the_lower_loss_is_kept() -> None:
    chosen, losses = config(until="first"), {SDSStage.FIRST: 2.0, SDSStage.CONTROL: 2.5}
    assert choose(losses, chosen) == SDSStage.FIRST
    assert "discarded" in verdict(losses, SDSStage.FIRST, chosen)[0]
    losses[SDSStage.CONTROL] = 1.0
    assert choose(losses, chosen) == SDSStage.CONTROL
    assert verdict(losses, SDSStage.CONTROL, chosen) == []
    assert choose({}, config(until="first", control=False)) == SDSStage.FIRST
