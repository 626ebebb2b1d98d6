"""Plan of a run, made from a config and layers, and OWL: it keeps the mean sparsity exactly, and
blocks with outliers stay denser."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError, ModelError
from backend.models.blocks import block_linears
from backend.models.sources.catalog import inspect
from backend.pruning.config import PASS_OF, SDSConfig, SDSPass, SDSStage
from backend.pruning.passes import outlier_share
from backend.pruning.plan import PruningPlan, block_shares, pruning_plan
from backend.pruning.stage_store import install
from tests.pruning.stages import prune
from tests.refusals import refusal

LAYERS = inspect("toy").linears


def config(**fields: object) -> SDSConfig:
    given = {"precision": "float32", "adjust_steps": 5, "pattern": "60%", "allocation": "owl"}
    return SDSConfig.model_validate(given | fields)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=40),
    st.integers(300, 700),
    st.floats(0.01, 0.14),
)
def test_the_mean_is_exact_and_the_spread_is_bounded(blocks, mille, spread) -> None:
    share = mille / 1000
    outliers = {n: d for n, (d, _) in enumerate(blocks)}
    weights = {n: w for n, (_, w) in enumerate(blocks)}
    actual = block_shares(outliers, weights, share, spread)
    mean = sum(actual[n] * weights[n] for n in actual) / sum(weights.values())
    assert mean == pytest.approx(share, abs=1e-9)
    assert 0 < min(actual.values()) <= max(actual.values()) < 1
    assert max(actual.values()) - min(actual.values()) <= 2 * spread + 1e-9
    ranked = sorted(actual, key=outliers.__getitem__)
    assert all(actual[a] >= actual[b] - 1e-9 for a, b in pairwise(ranked))


def test_shares_equal_those_computed_by_hand() -> None:
    actual = block_shares({0: 0.01, 1: 0.02, 2: 0.03}, {0: 5, 1: 5, 2: 5}, 0.5, 0.1)
    assert actual == pytest.approx({0: 0.6, 1: 0.5, 2: 0.4})
    assert block_shares({0: 0.3, 1: 0.3}, {0: 1, 1: 9}, 0.5) == {0: 0.5, 1: 0.5}


def test_outliers_compare_with_the_mean_of_their_layer() -> None:
    scores = [torch.tensor([1.0, 1.0, 1.0, 21.0]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])]
    assert outlier_share(scores, 3.4) == 1 / 8  # mean 6
    assert outlier_share(scores, 3.6) == 0.0
    assert outlier_share([1024 * scores[0], scores[0]], 3.4) == 2 / 8
    assert outlier_share([], 5.0) == 0.0


@pytest.mark.parametrize(("refused", "accepted"), [("85%", "83%"), ("16%", "17%"), ("2:4", "50%")])
def test_impossible_allocations_are_refused(refused: str, accepted: str) -> None:
    with refusal("allocation", error=ConfigError):
        pruning_plan(config(pattern=refused), LAYERS)
    pruning_plan(config(pattern=refused, allocation="uniform"), LAYERS)
    pruning_plan(config(pattern=accepted), LAYERS)


def test_owl_is_refused_if_overrides_set_every_pattern() -> None:
    with refusal("allocation", "no layer whose sparsity", error=ConfigError):
        pruning_plan(config(overrides="*=2:4"), LAYERS)


def plain_outliers(model, ids: Tensor) -> dict[int, float]:
    """Share of outliers in each block, from forward passes of the entire dense model."""
    energy: dict[tuple[int, str], Tensor] = {}
    handles = [
        linear.layer.register_forward_pre_hook(
            lambda _, args, key=(b, m): energy.update({key: args[0].flatten(0, 1).square().mean(0)})
        )
        for b in range(3)
        for m, linear in block_linears(model, b).items()
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    actual = {}
    for b in range(3):
        linears = block_linears(model, b).items()
        scores = [(x.read().abs() * energy[b, m].sqrt()).flatten() for m, x in linears]
        actual[b] = torch.cat([x > 5 * x.mean() for x in scores]).float().mean().item()
    return actual


def test_a_run_prunes_each_block_to_its_reported_sparsity(
    toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    model, recorded = toy(), recorder()
    prune(model, calibration[:16], config(batch=5), tmp_path, recorded, heldout_share=0)
    message = {
        n: [v for name, v, s in recorded.metrics if name == "owl/outliers" and s == n]
        for n in range(3)
    }
    expected = plain_outliers(toy(), calibration[:16])
    assert {n: v[0] for n, v in message.items()} == pytest.approx(expected, abs=1e-4)
    shares = {s: v for name, v, s in recorded.metrics if name == "owl/sparsity"}
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.16)
    assert recorded.progressed[-1][0] == recorded.progressed[-1][1]
    assert len([line for line in recorded.lines if line.startswith("OWL")]) == 3
    for stage in (SDSStage.FIRST, SDSStage.SDS):
        install(model, Checkpoints(tmp_path), stage)
        for block, share in shares.items():
            weights = torch.cat([x.read().flatten() for x in block_linears(model, block).values()])
            zeros = (weights == 0).float().mean().item()
            assert zeros == pytest.approx(share, abs=0.012)  # rows of 64 round down


MIXED = SDSConfig.model_validate(
    {
        "pattern": "60%",
        "allocation": "owl",
        "base": "alps",
        "damping": 0.1,
        "exclude": "0.*",
        "overrides": "mlp.down_proj=4:8, mlp.up_proj=60%",
    }
)


def test_layers_with_the_same_pattern_form_a_group() -> None:
    plan = pruning_plan(MIXED, LAYERS)
    actual = {(str(x.pattern), x.allocation): len(x.layers) for x in plan.groups}
    assert actual == {("4:8", "uniform"): 2, ("60%", "uniform"): 2, ("60%", "owl"): 10}
    assert {(x.pruner, x.damping) for x in plan.groups} == {("alps", 0.1)}
    assert plan.dense == tuple(x.name for x in LAYERS if x.block == 0)
    assert plan.layers.keys() == {x.name for x in LAYERS if x.block}
    assert pruning_plan(MIXED, LAYERS[::-1]) == plan


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({}, ["first", "second"]),
        ({"until": "first"}, ["first"]),
        (
            {"reconstruct": 1, "pattern": "50%", "allocation": "owl", "control": True},
            ["owl", "first", "second", "first-blocks", "sds-blocks"],
        ),
        ({"reconstruct": 1}, ["first", "second", "sds-blocks"]),
    ],
)
def test_the_passes_produce_the_stages(fields: dict, passes: list[str]) -> None:
    plan = pruning_plan(SDSConfig.model_validate(fields), LAYERS)
    assert [*plan.passes] == passes
    assert {PASS_OF[stage] for stage in plan.stages} == {*plan.passes} - {SDSPass.OUTLIERS}
    assert sorted(plan.stages, key=[*SDSStage].index) == [*plan.stages]


def changed(**parts: Any) -> dict[str, Any]:
    return pruning_plan(MIXED, LAYERS).model_dump(mode="json") | parts


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (changed(dense=[]), "matches no layer"),
        (changed(dense=["model.layers.0.mlp.up_proj", "lm_head"]), "not a layer of a block"),
        (changed(stages=["dense", "first"]), "does not match the config"),
        (changed(passes=["first", "owl"]), "does not match the config"),
        (changed(groups=changed()["groups"][::-1]), "does not match the config"),
        (changed(groups=[{**x, "damping": 0.2} for x in changed()["groups"]]), "does not match"),
        (changed(groups=[{**x, "pattern": "50%"} for x in changed()["groups"]]), "does not match"),
    ],
)
def test_a_plan_of_another_config_is_refused(stored: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        PruningPlan.model_validate(stored).check(MIXED)


def test_a_model_with_other_layers_is_not_pruned(toy, calibration: Tensor, tmp_path: Path) -> None:
    other = pruning_plan(SDSConfig(), [x for x in LAYERS if x.block < 2])
    with pytest.raises(ModelError, match="other layers"):
        prune(toy(), calibration[:8], SDSConfig(), tmp_path, plan=other)
    assert not any(tmp_path.iterdir())
