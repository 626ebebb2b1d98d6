"""Refusals that name suitable formats, and model cards."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from backend.errors import ConfigError
from backend.export.card import (
    CARD,
    ModelOrigin,
    copy_terms,
    figures,
    front_matter,
    origin_of,
    pruned_card,
)
from backend.export.formats import (
    ExportRequirements,
    check_format,
    vllm_hint,
)

PLAIN = ExportRequirements(4, "symmetric", "float16", False, True, frozenset({(64, 64), (32, 192)}))


@pytest.mark.parametrize(
    ("format", "changed", "said", "others"),
    [
        ("gptq", {"bits": 5}, "2, 3, 4, 8 bits, not 5", "compressed-tensors, slimscope or dense"),
        ("gptq_v2", {"bits": 7}, "not 7", "compressed-tensors, slimscope or dense"),
        (
            "gptq",
            {"grid": "zero-point"},
            "zero-point",
            "compressed-tensors, gptq_v2, slimscope or dense",
        ),
        ("gptq_v2", {"grid": "offset"}, "whole numbers", "slimscope or dense"),
        ("compressed-tensors", {"grid": "offset"}, "whole numbers", "slimscope or dense"),
        ("gptq", {"scale_dtype": "bfloat16"}, "float16", "compressed-tensors, slimscope or dense"),
        (
            "gptq_v2",
            {"all_quantized": False},
            "leave single layers",
            "compressed-tensors, slimscope or dense",
        ),
        (
            "gptq_v2",
            {"shapes": frozenset({(64, 40)})},
            "64 × 40",
            "compressed-tensors, slimscope or dense",
        ),
        ("compressed-tensors", {"in_out": True}, "transposed", "gptq, gptq_v2, slimscope or dense"),
        ("compressed-tensors", {"architecture": "GPTBigCodeForCausalLM"}, "cannot load", "dense"),
    ],
)
def test_unsupported_settings_of_a_format_are_refused(
    format: str, changed: dict, said: str, others: str
) -> None:
    choice = replace(PLAIN, **changed)
    with pytest.raises(ConfigError) as refused:
        check_format(format, choice)
    assert said in refused.value.why and refused.value.field == "format"
    assert refused.value.do == f"Choose {others}."


def test_the_hint_names_what_vllm_cannot_run() -> None:
    names = [f"layers.0.self_attn.{each}_proj" for each in "qkv"]
    assert vllm_hint(4, [*names, "layers.0.self_attn.o_proj"]) == ""
    assert "cannot load 3-bit" in vllm_hint(3, names) and "CPU" in vllm_hint(8, names)
    assert "fuses q_proj, k_proj, v_proj" in vllm_hint(4, names[:2])


BASE = """---
base_model: org/base
license: other
license_name: base-terms
license_link: https://example.org/terms
---
# A model
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (folder := tmp_path / "base").mkdir()
    (folder / CARD).write_text(BASE)
    (folder / "LICENSE.txt").write_text("the terms")
    (folder / "LICENCE").write_text("the same, as others spell it")
    (folder / "NOTICE").write_text("a notice")
    return folder


def test_license_and_terms_are_carried_over(base: Path, tmp_path: Path) -> None:
    origin = origin_of(str(base))
    (new := tmp_path / "new").mkdir()
    measured = {"perplexity": {"Dense": 12.0, "SDS": 15.5}, "zero_share": {"SDS": 0.5}}
    card = pruned_card(
        "Base", "sds-0001", "SDS", "SDS", "2:4", origin, "", measured, {"pattern": "2:4"}, {}
    )
    (new / CARD).write_text(card)
    copy_terms(origin, new)
    assert {file.name for file in new.iterdir()} == {CARD, "LICENSE.txt", "LICENCE", "NOTICE"}
    read = metadata_load(new / CARD)
    assert (read["base_model"], read["license"]) == ("org/base", "other")
    assert read["license_name"] == "base-terms" and "sparse" in read["tags"]
    assert "| SDS | 15.500 | 0.5 |" in card and "| Dense | 12.000 |  |" in card
    assert origin_of(str(new)) == ModelOrigin(
        "org/base", "other", "base-terms", "https://example.org/terms", new
    )


def test_the_default_model_is_named_as_the_hub_names_it(current: object) -> None:
    origin = origin_of("smollm2-135m")
    assert origin.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "license: apache-2.0" in front_matter(origin, [])
    assert figures({"perplexity": {"Dense": 2.0}}).endswith("| Dense | 2.000 |")
