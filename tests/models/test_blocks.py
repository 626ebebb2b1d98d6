import pytest
import torch
from torch.nn import functional
from transformers import MixtralConfig

from backend.models.blocks import block_linears, decoder_blocks
from backend.models.families.experts import fused, split_experts

LLAMA = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}
OPT = {f"self_attn.{name}": (32, 32) for name in ("k_proj", "v_proj", "q_proj", "out_proj")}
OPT |= {"fc1": (48, 32), "fc2": (32, 48)}
EXPECTED = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA
    | {"self_attn.q_proj": (64, 32), "self_attn.o_proj": (32, 64)}
    | {f"self_attn.{name}": (32, 32) for name in ("k_proj", "v_proj")},
    "gemma3": LLAMA,
    "phi": {f"self_attn.{n}": LLAMA[f"self_attn.{n}"] for n in ("q_proj", "k_proj", "v_proj")}
    | {"self_attn.dense": (32, 32), "mlp.fc1": (48, 32), "mlp.fc2": (32, 48)},
    "phi3": {
        "self_attn.qkv_proj": (64, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_up_proj": (96, 32),
        "mlp.down_proj": (32, 48),
    },
    "opt": OPT,
    "opt-350m": OPT,
    "gpt2": {
        "attn.c_attn": (96, 32),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (128, 32),
        "mlp.c_proj": (32, 128),
    },
}


def test_every_linear_of_a_block_is_found_with_its_shape(family, model):
    assert len(decoder_blocks(model)) == 3
    modules = dict(model.named_modules())
    for index in range(3):
        linears = block_linears(model, index)
        assert {name: linear.shape for name, linear in linears.items()} == EXPECTED[family]
        for name, linear in linears.items():
            assert modules[linear.name] is linear.layer
            assert (linear.block, linear.module) == (index, name)


def test_read_gives_the_matrix_the_layer_multiplies_with(model):
    for linear in block_linears(model, 1).values():
        x = torch.randn(3, linear.shape[1])
        expected = functional.linear(x, linear.read(), linear.layer.bias)
        torch.testing.assert_close(linear.layer(x), expected)


def test_write_reaches_one_weight_and_no_other(model):
    head = model.get_output_embeddings().weight
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    linear = next(iter(block_linears(model, 0).values()))
    W = torch.randn(linear.shape)
    linear.write(W)
    torch.testing.assert_close(linear.read(), W)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{linear.name}.weight"}
    assert model.get_output_embeddings().weight is head


def test_read_is_a_copy_in_float32_and_write_casts(make):
    model = make("gpt2").to(torch.bfloat16)
    linear = block_linears(model, 0)["mlp.c_fc"]
    W = linear.read()
    assert W.dtype == torch.float32
    W.zero_()
    assert linear.read().abs().sum() > 0
    W.fill_(1 / 3)
    linear.write(W)
    assert linear.layer.weight.dtype == torch.bfloat16
    assert torch.equal(linear.read(), W.to(torch.bfloat16).float())


def test_a_matrix_of_another_shape_is_not_broadcast(make):
    linear = block_linears(make("llama"), 0)["mlp.up_proj"]
    with pytest.raises(ValueError, match=r"mlp\.up_proj"):
        linear.write(torch.zeros(1, linear.shape[1]))


def test_every_expert_has_linears_of_its_own(make):
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    model = make(config).eval()
    ids = torch.arange(40).view(2, 20)
    before = model(input_ids=ids).logits
    split_experts(model)
    linears = block_linears(model, 1)
    assert linears["mlp.experts.3.gate_up_proj"].shape == (48, 16)
    assert not any("gate.weight" in module for module in linears)  # the router stays dense
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-6)
    linears["mlp.experts.2.down_proj"].write(torch.zeros(16, 24))
    with fused(model):
        own = model.get_parameter("model.layers.1.mlp.experts.down_proj")
        assert [bool(expert.any()) for expert in own] == [True, True, False, True]
