"""Which layers are quantised, how much is trained, and what is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from backend.errors import ConfigError
from backend.quantization.dlqat.config import DLQATConfig, DLQATStage
from backend.quantization.dlqat.layer_selection import (
    fitting_sizes,
    quantized_layers,
    refuse_idle,
    trainable,
)

OFF = {"text_loss": False, "rtn": False, "gptq": False, "lora": False}


@dataclass(frozen=True)
class Layer:
    name: str
    block: int
    module: str
    columns: int


def layers(columns: int = 96) -> list[Layer]:
    widths = {"self_attn.q_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": 2 * columns}
    return [
        Layer(f"model.layers.{b}.{m}", b, m, width) for b in range(2) for m, width in widths.items()
    ]


def config(**fields: object) -> DLQATConfig:
    return DLQATConfig.model_validate({"group_size": 32, **fields})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, 6),
        ({"layers": "mlp.*"}, 4),
        ({"layers": "*.q_proj, 1.*"}, 4),
        ({"exclude": "0.*"}, 3),
        ({"layers": "mlp.*", "exclude": "*.down_proj"}, 2),
        ({"layers": "model.layers.0.mlp.up_proj"}, 1),
    ],
)
def test_layers_are_chosen_by_name(fields: dict, found: int) -> None:
    assert len(quantized_layers(layers(), config(**fields))) == found


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"layers": "attention.*"}, "layers", "attention"),
        ({"exclude": "nothing.*"}, "exclude", "nothing"),
        ({"exclude": "*"}, "exclude", "No layer is left"),
        ({"group_size": 128}, "group_size", "Choose 8, 12, 16, 24, 32, 48, 96, or 0"),
    ],
)
def test_what_fits_no_layer_is_refused_beside_its_field(
    fields: dict, field: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        quantized_layers(layers(), config(**fields))
    assert refused.value.field == field


def test_a_group_size_has_to_divide_only_what_is_quantized() -> None:
    assert quantized_layers(layers(96), config(group_size=64, layers="*.down_proj"))
    assert quantized_layers(layers(96), config(group_size=0))


def test_sizes_that_fit_all_layers() -> None:
    assert fitting_sizes([576, 1536]) == [8, 12, 16, 24, 32, 48, 64, 96, 192]
    assert fitting_sizes([7, 49]) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (OFF, "text_loss"),
        ({"rank": 0, "magnitude": False}, "rank"),
        ({"rank": 0}, "rank"),  # the LoRA control needs one
        ({**OFF, "rank": 0, "lora_only": True}, "rank"),
        ({**OFF, "rank": 0, "lora_gptq": True}, "rank"),
    ],
)
def test_nothing_to_do_or_to_train_is_refused(fields: dict, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_idle(config(**fields))
    assert refused.value.field == field


@pytest.mark.parametrize(
    "fields", [{"rank": 0, "lora": False}, {**OFF, "m_only": True, "magnitude": False}, {}]
)
def test_magnitudes_alone_are_something_to_train(fields: dict) -> None:
    refuse_idle(config(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"bits": 1}, {"bits": 9}, {"rank": -1}, {"group_size": -1}, {"warmup": 1}, {"rate": 0},
     {"space": "guess"}, {"steps": 0}],
)  # fmt: skip
def test_values_out_of_range_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_stages_come_in_order_with_those_they_build_on() -> None:
    assert config(**OFF, lora_gptq=True).stages == [
        DLQATStage.DENSE,
        DLQATStage.LORA,
        DLQATStage.LORA_GPTQ,
    ]
    assert config(rtn=True, distil=True).stages == [
        DLQATStage.DENSE,
        DLQATStage.RTN,
        DLQATStage.GPTQ,
        DLQATStage.DLQAT,
        DLQATStage.DLQAT_KD,
        DLQATStage.LORA,
    ]


@pytest.mark.parametrize(
    ("stage", "fields", "trains"),
    [
        (DLQATStage.DLQAT, {}, (True, True)),
        (DLQATStage.DLQAT, {"rank": 0}, (False, True)),
        (DLQATStage.DLQAT_KD, {"magnitude": False}, (True, False)),
        (DLQATStage.M_ONLY, {"magnitude": False}, (False, True)),
        (DLQATStage.LORA_ONLY, {}, (True, False)),
    ],
)
def test_what_a_stage_trains(stage: DLQATStage, fields: dict, trains: tuple[bool, bool]) -> None:
    assert config(**fields).trains(stage) == trains


def test_the_share_of_trained_numbers_on_a_7b_model() -> None:
    """The claim "< 1 %" of the abstract: LLaMA-7B, groups of 128, rank 4."""
    hidden, inner, blocks, parameters = 4096, 11008, 32, 6_738_415_616
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    trained = trainable(shapes * blocks, 4, 128)
    assert trained == 60_588_032
    assert trained / parameters == pytest.approx(0.008991, abs=1e-6)
    assert trainable(shapes * blocks, 16, 128, magnitude=False) / parameters < 0.01
