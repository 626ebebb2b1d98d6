"""Linear layers with codes for the native decoder."""

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import linear
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from backend.models.blocks import all_linears
from backend.quantization import GRID_NAMES
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import (
    PackedLinear,
    expand,
    has_codes,
    pack_model,
    unpack_model,
)

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def layer(
    rows: int = 24, columns: int = 96, bits: int = 4, size: int = 32, grid_type: str = "symmetric"
) -> QuantizedWeight:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    grid = minmax_grid(weight.view(rows, -1, size), bits, grid_type)
    return QuantizedWeight(grid, grid.codes(weight).byte())


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_pass_of_pytorch_expands_and_multiplies(bits: int, grid_type: str) -> None:
    held, bias = layer(bits=bits, grid_type=grid_type), torch.randn(24)
    x = torch.randn(2, 3, 96).bfloat16()
    expected = linear(x, held.dense().bfloat16(), bias.bfloat16())
    assert torch.equal(PackedLinear(held, bias)(x), expected)
    assert torch.equal(deepcopy(PackedLinear(held, bias))(x), expected)
    assert PackedLinear(held, bias).state_dict().keys() == {"bias"}


def tiny(tied: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).bfloat16()


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_expanded_and_keep_their_codes(tied: bool) -> None:
    model, held = tiny(tied), layer(64, 32)
    assert pack_model(model, {EMBEDDING: held}) == []
    assert torch.equal(model.model.embed_tokens.weight, held.dense().bfloat16())
    assert model.model.embed_tokens.quantized is held
    assert has_codes(model.lm_head) == tied


def test_groups_that_are_no_multiple_of_32_are_expanded() -> None:
    model = tiny()
    layers = {
        x.name: layer(*x.read().shape, size=16 if "up" in x.name else 32)
        for x in all_linears(model)
    }
    (lost,) = pack_model(model, layers)
    assert lost.endswith("up_proj") and not has_codes(model.get_submodule(lost))
    assert len([m for m in model.modules() if isinstance(m, PackedLinear)]) == len(layers) - 1


def test_transposed_layers_are_expanded_as_their_model_has_them() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    layers = {x.name: layer(*x.read().shape) for x in all_linears(model)}
    expand(model, layers)
    for x in all_linears(model):
        assert torch.equal(x.read(), layers[x.name].dense())


def test_a_model_that_pytorch_decodes_is_unpacked() -> None:
    model, ids = tiny(), torch.arange(12)[None]
    pack_model(model, {x.name: layer(*x.read().shape) for x in all_linears(model)})
    expected = model(input_ids=ids).logits
    unpack_model(model)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())
    assert torch.equal(model(input_ids=ids).logits, expected)
