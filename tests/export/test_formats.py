"""What a format cannot hold is refused, and those that can are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backend.errors import ConfigError
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
        ("gptq", {"stored": "bfloat16"}, "float16", "compressed-tensors, slimscope or dense"),
        (
            "gptq_v2",
            {"whole": False},
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
def test_a_choice_a_format_cannot_hold(format: str, changed: dict, said: str, others: str) -> None:
    choice = replace(PLAIN, **changed)
    with pytest.raises(ConfigError) as refused:
        check_format(format, choice)
    assert said in refused.value.why and refused.value.field == "format"
    assert refused.value.do == f"Choose {others}."


def test_what_vllm_will_not_run_is_said() -> None:
    names = [f"layers.0.self_attn.{each}_proj" for each in "qkv"]
    assert vllm_hint(4, [*names, "layers.0.self_attn.o_proj"]) == ""
    assert "cannot load 3-bit" in vllm_hint(3, names) and "CPU" in vllm_hint(8, names)
    assert "fuses q_proj, k_proj, v_proj" in vllm_hint(4, names[:2])
