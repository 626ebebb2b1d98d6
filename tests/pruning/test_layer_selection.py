"""Selection of layers and their patterns."""

from decimal import Decimal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError
from backend.models.blocks import block_linears
from backend.models.layer_names import fits, read_names
from backend.models.loading import weights_hash
from backend.models.sources.catalog import inspect
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.pattern import Pattern, read_overrides
from backend.pruning.plan import layer_patterns
from backend.pruning.stage_store import install
from tests.pruning.stages import prune
from tests.refusals import refusal

LAYERS = inspect("toy").linears


def config(**fields: object) -> SDSConfig:
    given = {"precision": "float32", "adjust_steps": 5, "control": True}
    return SDSConfig.model_validate(given | fields)


def test_lists_can_name_every_layer() -> None:
    names = [f"model.layers.{block}.mlp.down_proj" for block in range(400)]
    lists = config(overrides=", ".join(f"{n}=4:8" for n in names), exclude=", ".join(names))
    assert len(read_overrides(lists.overrides)) == len(read_names(lists.exclude)) == 400


def test_lists_are_parsed_with_or_without_spaces() -> None:
    assert read_names(" 0.* ,*.down_proj,, ") == ("0.*", "*.down_proj")
    assert read_names("") == ()
    expected = (("mlp.down_proj", Pattern(4, 8, 0.5)), ("self_attn.*", Pattern(0, 0, 0.5)))
    assert read_overrides("mlp.down_proj = 4:8,self_attn.*=50 %") == expected


INVALID = {
    "overrides": ["mlp.down_proj", "=2:4", "a=", "a=5:4", "a=120%", "a=2:4=3", "a=2:4, " * 1001],
    "exclude": ["a, " * 1001],
    # patterns that keep or drop everything
    "pattern": ["0%", "100%", "1.0", "0.00000000000001%", "4:4", "5:4", "0:4"],
}


@pytest.mark.parametrize(
    ("field", "text"), [(field, text) for field, texts in INVALID.items() for text in texts]
)
def test_an_invalid_text_is_reported_at_its_field(field: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**{field: text})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_the_record_has_a_canonical_form() -> None:
    chosen = config(exclude="0.*,  1.*", overrides="a=0.5 ,b=2:4")
    assert (chosen.exclude, chosen.overrides) == ("0.*, 1.*", "a=50%, b=2:4")


@given(st.decimals("0.0000000001", "99.9999999999", places=10))
def test_a_share_survives_a_round_trip(percent: Decimal) -> None:
    """The record has the text, so a share must not be rounded to 100 %."""
    first = Pattern.parse(f"{percent:f}%")
    assert Pattern.parse(str(first)) == first
    assert Decimal(str(first).rstrip("%")) == percent
    assert config(pattern=f"{percent:f}%") == config(pattern=str(first))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mlp.down_proj", 3),
        ("*.down_proj", 3),
        ("0.*", 7),
        ("self_attn.?_proj", 12),
        ("2.mlp.up_proj", 1),
        ("model.layers.1.*", 7),
        ("*", 21),
        ("down_proj", 0),
        ("MLP.*", 0),
    ],
)
def test_names_match_layers(name: str, count: int) -> None:
    assert sum(fits(name, layer) for layer in LAYERS) == count


def test_the_last_match_wins_and_excluded_layers_have_no_pattern() -> None:
    chosen = config(
        pattern="2:4", exclude="1.*, *.o_proj", overrides="mlp.*=50%, mlp.down_proj=4:8"
    )
    patterns = layer_patterns(LAYERS, chosen)
    assert len(patterns) == 12
    actual = {
        layer.module: str(patterns[layer.name])
        for layer in LAYERS
        if layer.block == 0 and layer.name in patterns
    }
    assert actual == {
        "self_attn.q_proj": "2:4",
        "self_attn.k_proj": "2:4",
        "self_attn.v_proj": "2:4",
        "mlp.gate_proj": "50%",
        "mlp.up_proj": "50%",
        "mlp.down_proj": "4:8",
    }


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"exclude": "down_proj"}, "exclude", "down_proj matches no layer"),
        ({"exclude": "7.*"}, "exclude", "7.* matches no layer"),
        ({"exclude": "b" + "a" * 5000}, "exclude", f"b{'a' * 79} matches no layer"),
        ({"overrides": "attn=2:4"}, "overrides", "attn matches no layer"),
        ({"exclude": "*"}, "exclude", "No layer is left"),
        ({"pattern": "3:7"}, "pattern", "3:7 does not fit"),
        ({"pattern": "3:7"}, "pattern", "model.layers.0.mlp.gate_proj (64 inputs)"),
        ({"pattern": "3:7"}, "pattern", "2, 4, 8, 16, 32"),  # groups that divide all inputs
        ({"overrides": "mlp.down_proj=5:10"}, "overrides", "5:10 does not fit"),
    ],
)
def test_impossible_selections_are_reported_at_their_field(
    fields: dict, field: str, message: str
) -> None:
    with refusal(field, message, error=ConfigError):
        layer_patterns(LAYERS, config(**fields))


def zero_share(W: Tensor) -> float:
    return (W == 0).float().mean().item()


def test_each_layer_ends_with_its_pattern(
    toy, calibration: Tensor, tmp_path: Path, recorder
) -> None:
    chosen = config(pattern="2:4", exclude="0.*, 2.mlp.up_proj", overrides="*.down_proj=75%")
    model, dense, recorded = toy(), toy(), recorder()
    result = prune(model, calibration[:16], chosen, tmp_path, recorded)
    assert recorded.progressed[-1][0] == recorded.progressed[-1][1]
    assert {s.module for s in recorded.snapshots if s.block == 2} == {
        m for m in block_linears(model, 2) if m != "mlp.up_proj"
    }
    for stage in (SDSStage.FIRST, SDSStage.CONTROL, SDSStage.SDS):
        install(model, Checkpoints(tmp_path), stage)
        for block in range(3):
            before = block_linears(dense, block)
            for module, linear in block_linears(model, block).items():
                W = linear.read()
                if block == 0 or (block, module) == (2, "mlp.up_proj"):
                    assert torch.equal(W, before[module].read())
                elif module == "mlp.down_proj":
                    assert zero_share(W) == pytest.approx(0.75, abs=0.005)
                else:
                    assert ((W.view(-1, 4) != 0).sum(1) <= 2).all()
                    assert zero_share(W) == pytest.approx(0.5, abs=0.01)
    install(model, Checkpoints(tmp_path), SDSStage.DENSE)
    assert weights_hash(model) == weights_hash(dense)
    assert 0.5 < result.zero_share[SDSStage.SDS] < 0.6  # statistics of pruned layers only
