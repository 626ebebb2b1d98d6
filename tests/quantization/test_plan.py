"""Plan of a run: settings of each layer, stages, and refusals."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from backend.errors import ConfigError
from backend.export.formats import Layout, layout_of
from backend.models.families.stored import LinearShape
from backend.quantization.config import DLQATConfig
from backend.quantization.plan import (
    QuantizationPlan,
    QuantSettings,
    plan,
    trainable,
)
from tests.refusals import refusal


def model(columns: int = 96) -> SimpleNamespace:
    widths = {"self_attn.q_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": 2 * columns}
    linears = [
        LinearShape(f"model.layers.{b}.{m}", b, m, 0, w)
        for b in range(2)
        for m, w in widths.items()
    ]
    return SimpleNamespace(linears=linears, architecture="LlamaForCausalLM")


def config(**fields: object) -> DLQATConfig:
    return DLQATConfig.model_validate({"group_size": 32, **fields})


def test_a_plan_has_the_settings_of_every_layer() -> None:
    chosen = config(bits=4, exclude="0.*, *.down_proj", stages="lora-gptq, awq", keep_zeros=True)
    created = plan(chosen, model(), "gptq")
    quantized = ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj")
    settings = QuantSettings(4, 32, "symmetric", "weighted", True, ("awq",), "gptq", quantized)
    assert created.layers == {x.name: None for x in model().linears} | dict.fromkeys(
        quantized, settings
    )
    assert created.stages == ("dense", "awq", "lora", "lora-gptq")
    assert QuantizationPlan.model_validate(created.model_dump(mode="json")) == created


class Exported(DLQATConfig):
    format: str = "gptq"


def test_a_stored_plan_must_match_its_config() -> None:
    job = Exported(group_size=32, exclude="0.*")
    stored = plan(job, model(), job.format).model_dump(mode="json")
    QuantizationPlan.model_validate(stored).check(job)
    for change, messages in (
        ({"groups": [stored["groups"][0] | {"bits": 2}]}, "does not match the config"),
        ({"stages": ["dense", "rtn"]}, "does not match the config"),
        ({"dense": [*stored["dense"], "lm_head"]}, "not a layer of a block"),
    ):
        with pytest.raises(ValueError, match=messages):
            QuantizationPlan.model_validate(stored | change).check(job)


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"exclude": "nothing.*"}, "exclude", "nothing"),
        ({"exclude": "*"}, "exclude", "No layer is left to quantize"),
        ({"group_size": 128}, "group_size", "Choose 8, 12, 16, 24, 32, 48, 96, or 0"),
        ({"stages": ""}, "stages", "No stage"),
        ({"rank": 0, "stages": "lora"}, "rank", "LoRA needs a rank"),
        ({"rank": 0, "stages": "lora-only"}, "rank", "nothing to train"),
        ({"rank": 0, "stages": "lora-gptq"}, "rank", "LoRA needs a rank"),
    ],
)
def test_invalid_settings_are_refused_at_their_field(fields: dict, field: str, said: str) -> None:
    with refusal(field, said, error=ConfigError):
        plan(config(**fields), model())


@pytest.mark.parametrize(
    ("stages", "architecture", "named"),
    [
        ("awq", "LlamaForCausalLM", ""),
        ("awq", "GPT2LMHeadModel", "AWQ"),
        ("hqq", "X", ""),
        ("hqq, rotated", "GraniteForCausalLM", "RTN, rotated"),
    ],
)
def test_llama_only_quantizers_are_refused_for_other_blocks(
    stages: str, architecture: str, named: str
) -> None:
    facts = SimpleNamespace(linears=model().linears, architecture=architecture)
    if not named:
        assert plan(config(stages=stages), facts)
        return
    with refusal("stages", f"{named} cannot be used", architecture, error=ConfigError):
        plan(config(stages=stages), facts)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1},
        {"bits": 9},
        {"rank": -1},
        {"group_size": -1},
        {"stages": "guess"},
        {"learning_rate": 0},
        {"range_search": "guess"},
        {"steps": 0},
    ],
)
def test_values_out_of_range_are_refused(fields: dict) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_stages_are_ordered_and_include_their_prerequisites() -> None:
    assert config(stages="lora-gptq").stages == ("lora", "lora-gptq")
    assert config(stages=["dlqat-kd", "rtn", "block-wise", "rtn", "dlqat"]).stages == (
        "rtn",
        "block-wise",
        "dlqat",
        "dlqat-kd",
    )
    assert config().stages == ("gptq", "dlqat")


@pytest.mark.parametrize(
    ("stage", "fields", "trains"),
    [
        ("dlqat", {}, (True, True)),
        ("dlqat", {"rank": 0}, (False, True)),
        ("m-only", {}, (False, True)),
        ("lora-only", {}, (True, False)),
        ("lora", {}, (True, False)),
    ],
)
def test_trained_parameters_of_each_stage(
    stage: str, fields: dict, trains: tuple[bool, bool]
) -> None:
    assert config(**fields).trains(stage) == trains


def test_the_share_of_trained_parameters_of_a_7b_model() -> None:
    """The claim "< 1 %" of the abstract: LLaMA-7B, groups of 128, rank 4."""
    hidden, inner, blocks, parameters = 4096, 11008, 32, 6_738_415_616
    shapes = [(hidden, hidden, 128)] * 4 + [(inner, hidden, 128)] * 2 + [(hidden, inner, 128)]
    trained = trainable(shapes * blocks, 4)
    assert trained == 60_588_032
    assert trained / parameters == pytest.approx(0.008991, abs=1e-6)
    assert trainable(shapes * blocks, 16, magnitude=False) / parameters < 0.01


def test_a_packed_file_has_one_layout_and_a_mixed_plan_is_refused() -> None:
    created = plan(config(bits=4), model(), "compressed-tensors")
    assert layout_of(created, "compressed-tensors") == Layout(
        "compressed-tensors", 4, 32, "symmetric"
    )
    mixed = created.model_copy(
        update={"groups": (*created.groups, replace(created.groups[0], bits=3))}
    )
    with refusal("format", "cannot be saved as gptq", error=ConfigError):
        layout_of(mixed, "gptq")
    assert layout_of(mixed, "dense").format == "dense"
