"""Models are loaded as plain transformers loads them, and hashed; the linear layers of blocks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import MixtralConfig

from backend.errors import ModelError
from backend.models import loading
from backend.models.blocks import all_finite, block_linears, decoder_blocks
from backend.models.families.experts import fused, split_experts
from backend.models.loading import load, weights_hash
from backend.models.sources.spec import TOY_FOLDER
from tests.fork_server import elsewhere


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def test_load_gives_the_numbers_of_plain_transformers(tmp_path, plain_transformers):
    ids, out = torch.arange(0, 400, 3)[None], str(tmp_path / "logits.safetensors")
    plain_transformers(folder=str(TOY_FOLDER), ids=ids.tolist(), logits=out)
    mine = logits(load("toy").model, ids)
    torch.testing.assert_close(mine, load_file(out)["logits"], rtol=0, atol=1e-5)


def test_a_loaded_model_is_ready_to_measure():
    loaded = load("toy")
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.model.config.use_cache is False
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.facts.dtype == "float16"
    assert loaded.facts.parameters == loaded.model.num_parameters()
    assert {p.dtype for p in load("toy", dtype=torch.bfloat16).model.parameters()} == {
        torch.bfloat16
    }


def hash_of_toy():
    return weights_hash(load("toy").model)


def test_models_are_built_one_at_a_time(monkeypatch):
    whole, building = loading._load_full, threading.Lock()

    def alone(*given):
        assert building.acquire(blocking=False), "another one is being built"
        try:
            return whole(*given)
        finally:
            building.release()

    monkeypatch.setattr(loading, "_load_full", alone)
    with ThreadPoolExecutor(3) as threads:
        models = [x.model for x in threads.map(lambda _: load("toy"), range(3))]
    assert {p.device.type for model in models for p in model.parameters()} == {"cpu"}
    assert len({weights_hash(model) for model in models}) == 1


def test_hash_is_the_same_in_another_process_and_sees_every_weight():
    model = load("toy").model
    before = weights_hash(model)
    assert elsewhere(hash_of_toy) == before
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert weights_hash(model) != before


def test_hash_tells_dtypes_apart(make):
    assert weights_hash(make("gpt2")) != weights_hash(make("gpt2").bfloat16())


def test_a_model_beyond_the_memory_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: 1_000_000)
    with pytest.raises(ModelError, match=r"630 MB; 1 MB"):
        load("toy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_single_bad_value_is_found_wherever_it_is(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 499, 12_345, 19_999):
        values = torch.linspace(-2, 2, 20_000).to(dtype).view(100, 200)
        assert all_finite(values) and all_finite(values.T)
        values.view(-1)[place] = bad
        assert not all_finite(values) and not all_finite(values.T)
    assert all_finite(torch.empty(0, 3))


# blocks -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_reaches_one_weight_and_no_other_and_read_is_a_copy_in_float32(model, dtype):
    model.to(dtype)
    head = model.get_output_embeddings().weight
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    linear = next(iter(block_linears(model, 0).values()))
    W = torch.randn(linear.shape)
    linear.write(W)
    assert linear.read().dtype == torch.float32 and linear.layer.weight.dtype == dtype
    assert torch.equal(linear.read(), W.to(dtype).float())
    linear.read().zero_()
    assert linear.read().abs().sum() > 0
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{linear.name}.weight"}
    assert model.get_output_embeddings().weight is head


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
