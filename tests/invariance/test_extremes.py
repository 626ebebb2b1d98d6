"""Models and texts at the edge of what there is: a method works on them, or says why not."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from backend.errors import SlimscopeError
from backend.pruning.pruners import DECLARED_PRUNERS
from tests.conftest import ALL
from tests.invariance.outcomes import METHODS

TOKENS = 64  # in the vocabulary of most


def tiny(**fields: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **fields})).eval().requires_grad_(False)


def scaled(factors: dict[str, float]) -> LlamaForCausalLM:
    """A model with some parameters of its second block multiplied."""
    model = tiny()
    for name, factor in factors.items():
        model.model.layers[1].get_parameter(name).mul_(factor)
    return model


def text(rows: int = 8, length: int = 32, tokens: int = TOKENS) -> Tensor:
    return torch.randint(3, tokens, (rows, length), generator=torch.Generator().manual_seed(0))


DEAD_MLP = {"mlp.up_proj.weight": 0.0}
DEAD_ATTENTION = {"input_layernorm.weight": 0.0}
LARGE = 1e25
CASES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], Tensor]]] = {
    "inputs of down_proj are 0": (lambda: scaled(DEAD_MLP), text),
    "inputs of q, k, v and o are 0": (lambda: scaled(DEAD_ATTENTION), text),
    "a layer of tiny weights": (lambda: scaled({"mlp.down_proj.weight": 1e-20}), text),
    "one token alone": (tiny, lambda: torch.full((8, 32), 5)),
    "one block": (lambda: tiny(num_hidden_layers=1), text),
    "a context of 64": (tiny, lambda: text(8, 64)),
    "256,000 tokens": (lambda: tiny(vocab_size=256_000), lambda: text(4, 16, 256_000)),
    "outputs beyond float16": (lambda: scaled({"mlp.down_proj.weight": 1e7}), text),
}
OVERFLOWING = {"mlp.gate_proj.weight": LARGE, "mlp.up_proj.weight": LARGE}


SHAPES = ("one block", "a context of 64", "256,000 tokens")
SOLVERS = (*DECLARED_PRUNERS, "rtn", "hqq")  # they see one matrix, and nothing of such shapes
SLOW = ("medusa", "amphista", "dlqat-kd", "dlqat", "owl", "gptq-order", "rotated-gptq")
LEFT_OUT = {*product(SHAPES, SOLVERS), *product(("256,000 tokens",), SLOW)}


CELLS = [
    (case, method)
    for (i, case), (j, method) in product(enumerate(CASES), enumerate(METHODS))
    if (case, method) not in LEFT_OUT and (ALL or (i + j) % 3 == 0)
]


@pytest.mark.parametrize(("case", "method"), CELLS)
def test_it_works_or_is_refused_in_words(case: str, method: str) -> None:
    model, rows = (make() for make in CASES[case])
    try:
        found = METHODS[method](model, rows)
    except SlimscopeError as error:
        assert error.what and error.why and error.do
    else:
        assert all(map(math.isfinite, found.losses.values()))


BLIND = ("rtn", "hqq", "rotated")  # they read no activations; a run measures the dense model before


@pytest.mark.parametrize("method", [x for x in METHODS if x not in (*BLIND, "medusa", "amphista")])
def test_activations_that_overflow_are_named(method: str) -> None:
    with pytest.raises(SlimscopeError, match=r"not finite|overflow|diverged"):
        METHODS[method](scaled(OVERFLOWING), text())
