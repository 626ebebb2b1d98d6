"""Plan of a run, made from a config and layers and stored as JSON."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from backend.errors import ConfigError, ModelError
from backend.models.sources.catalog import inspect
from backend.pruning.config import PASS_OF, SDSConfig, SDSPass, SDSStage
from backend.pruning.plan import PruningPlan, pruning_plan
from tests.pruning.stages import prune

LAYERS = inspect("toy").linears
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
