"""Tuning chooses what is best on held-out text, resumes exactly, and changes nothing if off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError
from backend.methods.calibration import InputStatistics
from backend.methods.heldout import heldout_count
from backend.methods.sds.config import (
    ADDED_LATER,
    DAMPINGS,
    STAGE_LABELS,
    SDSConfig,
    SDSStage,
    refuse_tuning,
)
from backend.methods.sds.pipeline import run_sds
from backend.methods.sds.pruners.registry import PRUNERS
from backend.methods.sds.stage_store import SDSStageStore, Weights
from backend.models.blocks import block_linears
from backend.reporter import SilentReporter
from tests.methods.sds.stages import cut_short, stage_hashes

BLOCKS, SEGMENTS = 3, 6  # of which 2 are held out


def config(**fields: object) -> SDSConfig:
    few = {"holdout": 0.3, "redense_steps": 5, "adjust_steps": 2, "control": False}
    given = {"tune": True, "base": "sparsegpt", "precision": "float32", **few, **fields}
    return SDSConfig.model_validate(given)


@pytest.fixture
def ids(calibration: Tensor) -> Tensor:
    return calibration[:SEGMENTS]


def inputs_of(model: PreTrainedModel, block: int, ids: Tensor) -> dict[str, Tensor]:
    """Module -> its inputs X [in, tokens] in a plain forward pass."""
    seen: dict[str, Tensor] = {}
    handles = [
        linear.layer.register_forward_pre_hook(
            lambda _, args, m=module: seen.update({m: args[0].flatten(0, -2).T})
        )
        for module, linear in block_linears(model, block).items()
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def statistics(X: Tensor) -> InputStatistics:
    H = X @ X.T / X.shape[1]
    return InputStatistics(X.shape[1], H.diagonal(), H, mean=X.mean(1))


def error(pruned: Weights, dense: Weights, X: dict[str, Tensor]) -> float:
    """Sum over linears of |(V - W) X|^2 / |W X|^2."""
    return sum(
        (((pruned[m] - W) @ X[m]).square().sum() / (W @ X[m]).square().sum()).item()
        for m, W in dense.items()
    )


class PlainSearch:
    """The choices for one block by whole forward passes, given the stored stages before it."""

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, chosen: SDSConfig, folder: Path, block: int
    ) -> None:
        self.model, self.chosen, self.block = model, chosen, block
        held = heldout_count(len(ids), chosen.holdout)
        self.texts = ids[:-held], ids[-held:]
        self.store = SDSStageStore(Checkpoints(folder))
        self.dense = self.store.weights(SDSStage.DENSE, block)

    def put(self, stage: SDSStage, block: int) -> None:
        for module, W in self.store.weights(stage, block).items():
            block_linears(self.model, block)[module].write(W)

    def look(self, before: SDSStage, here: SDSStage) -> list[dict[str, Tensor]]:
        """Inputs of the calibration and of the held-out segments."""
        for block in range(self.block):
            self.put(before, block)
        self.put(here, self.block)
        return [inputs_of(self.model, self.block, text) for text in self.texts]

    def damping(self, before: SDSStage, here: SDSStage) -> dict[float, float]:
        """Damping -> error of the pruned weights of stage `here`."""
        X, held = self.look(before, here)
        weights = self.store.weights(here, self.block)
        return {
            damping: error(self.prune(weights, X, damping), self.dense, held)
            for damping in DAMPINGS
        }

    def prune(self, weights: Weights, X: dict[str, Tensor], damping: float) -> Weights:
        one, pattern = PRUNERS[self.chosen.base].prune, self.chosen.pattern
        return {m: one(W, statistics(X[m]), pattern, damping) for m, W in weights.items()}


@pytest.mark.parametrize("base", ["sparsegpt", "admm"])
def test_it_chooses_as_a_loop_over_whole_errors_does(
    base: str, toy, ids: Tensor, tmp_path: Path, recorder
) -> None:
    chosen, told = config(base=base), recorder()
    run_sds(toy(), ids, chosen, Checkpoints(tmp_path), told)
    said = {(name, block): value for name, value, block in told.metrics}
    for block in range(BLOCKS):
        plain = PlainSearch(toy(), ids, chosen, tmp_path, block)
        searches = {
            "damping/first": plain.damping(SDSStage.FIRST, SDSStage.DENSE),
            "damping/second": plain.damping(SDSStage.SECOND, SDSStage.REDENSE),
        }
        for name, errors in searches.items():
            assert len({*errors.values()}) == len(errors)  # each value makes a difference
            assert said[name, block] == min(errors, key=errors.__getitem__), name
            _, stage = name.split("/")
            chose = f"damping {said[name, block]:g} ({STAGE_LABELS[stage]};"
            line = f"Block {block + 1} of {BLOCKS}: {chose}"
            assert len([text for text in told.lines if text.startswith(line)]) == 1
    assert any(said["damping/first", block] != chosen.damping for block in range(BLOCKS))
    done = [d for d, _, _ in told.progressed]
    assert done == sorted(done) and done[-1] == told.progressed[-1][1]


@pytest.mark.parametrize(
    "fields", [{"order": "sub-block", "inputs": "kd"}, {"base": "admm", "inputs": "dd"}]
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    fields: dict, toy, ids: Tensor, tmp_path: Path, recorder
) -> None:
    chosen, model, whole = config(**fields), toy(), recorder()
    result = run_sds(model, ids, chosen, Checkpoints(tmp_path / "whole"), whole)
    expected, cut = stage_hashes(model, tmp_path / "whole", chosen), tmp_path / "cut"
    counts = (1, 4)  # blocks that are stored: in the first pass, and in the second
    metrics = cut_short(toy, ids, chosen, cut, counts, recorder)
    model, last = toy(), recorder()
    again = run_sds(model, ids, chosen, Checkpoints(cut), last)
    assert again.kept == result.kept
    assert stage_hashes(model, cut, chosen) == expected
    assert metrics + last.metrics == whole.metrics  # every block is told once
    names = {name for name, _, _ in whole.metrics if name.startswith("damping")}
    assert names == {"damping/first", "damping/second"}
    assert result.seconds["tuning"] > 0


def test_what_cannot_be_factorised_is_passed_over(toy, ids: Tensor, tmp_path: Path) -> None:
    """32 tokens: without damping, H of layers with 64 and 192 inputs is singular."""
    raised = {}
    for tune in (False, True):
        chosen = config(damping=1e-7, until="first", tune=tune)
        checkpoints = Checkpoints(tmp_path / str(tune))
        result = run_sds(toy(), ids[:, :8], chosen, checkpoints, SilentReporter())
        raised[tune] = any("damping raised" in text for text in result.warnings)
    assert raised == {False: True, True: False}


def test_off_it_leaves_runs_as_they_were(toy, ids: Tensor, tmp_path: Path, recorder) -> None:
    """The identity is that of runs from before the field; what is held out decides nothing."""
    off = config(tune=False, base="wanda")
    for soft in (False, True):
        identity = json.loads(off.model_copy(update={"soft_control": soft}).identity)
        without = ADDED_LATER.keys() - ({"soft_control"} if soft else set())
        assert [*identity] == [x for x in SDSConfig.model_fields if x not in without]
    assert json.loads(config().identity)["tune"] is True
    weights = []
    for number, others in enumerate((ids[-2:], ids[-2:].flip(1))):
        model, told = toy(), recorder()
        text = torch.cat([ids[:-2], others])
        result = run_sds(model, text, off, Checkpoints(tmp_path / str(number)), told)
        weights.append(stage_hashes(model, tmp_path / str(number), off))
        assert not any(name.startswith("damping") for name, _, _ in told.metrics)
        assert "tuning" not in result.seconds
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"holdout": 0}, "share of 0 of 6"), ({"holdout": 0.05}, "share of 0.05 of 6"),
     ({"base": "wanda"}, "wanda uses no damping")],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(
    fields: dict, why: str, toy, ids: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_sds(toy(), ids, config(**fields), Checkpoints(tmp_path), SilentReporter())
    assert caught.value.field == "tune" and why in caught.value.why and caught.value.do
    refuse_tuning(config(**fields, tune=False), SEGMENTS)
