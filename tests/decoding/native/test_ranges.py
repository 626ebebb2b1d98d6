"""What is out of range is refused before the native decoder reads it, and NaN stays a number like
others."""

import ctypes
import math
import os
import resource
from collections.abc import Callable

import psutil
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from backend.decoding.acceptance import top_k
from backend.decoding.draft_tree import chain
from backend.decoding.native.blocks import NativeBlocks
from backend.decoding.native.model import NativeModel, Segment
from backend.decoding.native.weights import WIDTHS, NativeLinear
from backend.kernels import library as structures
from backend.kernels.library import Pass, library
from backend.models.kv_cache import PreallocatedCache
from backend.models.loading import load
from backend.models.sources.gguf import convert
from backend.quantization.grid import QuantGrid, QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import PackedLinear
from backend.settings import Settings
from tests.decoding.native.conftest import SANITIZERS
from tests.decoding.native.test_decoder import SIZES, built
from tests.fork_server import elsewhere
from tests.models.sources.test_gguf import write_toy


@pytest.fixture
def model() -> PreTrainedModel:
    return built(LlamaConfig(**SIZES))


@pytest.fixture
def native(model: PreTrainedModel) -> NativeModel:
    return NativeModel(model)


IDS, STATES = torch.arange(3, 9), torch.zeros(6, 64)
PASSES: dict[str, Callable[[NativeModel], object]] = {
    "an id beyond": lambda m: m.forward(torch.tensor([203]), m.new_cache(8)),
    "a negative id": lambda m: m.forward(torch.tensor([-1]), m.new_cache(8)),
    "no ids": lambda m: m.forward(IDS[:0], m.new_cache(8)),
    "more ids than rows": lambda m: m.forward(IDS.repeat(2), m.new_cache(8)),
    "more logits than ids": lambda m: m.forward(IDS, m.new_cache(8), read_out=7),
    "less than no logits": lambda m: m.forward(IDS, m.new_cache(8), read_out=-1),
    "a position beyond": lambda m: NativeBlocks.__call__(m, STATES, m.new_cache(8), IDS + 1000),
    "a negative position": lambda m: NativeBlocks.__call__(m, STATES, m.new_cache(8), IDS - 4),
    "too few positions": lambda m: NativeBlocks.__call__(m, STATES, m.new_cache(8), IDS[:3]),
    "too many positions": lambda m: NativeBlocks.__call__(m, STATES, m.new_cache(8), IDS.repeat(2)),
    "a small mask": lambda m: NativeBlocks.__call__(
        m, STATES, m.new_cache(8), visible=torch.eye(5).bool()
    ),
    "a long mask": lambda m: NativeBlocks.__call__(
        m, STATES, m.new_cache(8), visible=torch.ones(36).bool()
    ),
    "a mask of nothing": lambda m: NativeBlocks.__call__(
        m, STATES, m.new_cache(8), visible=torch.zeros(6, 6).bool()
    ),
    "a cache of nothing": lambda m: m.new_cache(0),
    "a cache without end": lambda m: m.new_cache(2**40),
    "no segments": lambda m: m.run([]),
    "a cache twice": lambda m: m.run([Segment(m.new_cache(8), [1])] * 2),
    "a cache of another kind": lambda m: m.run([Segment(PreallocatedCache(1, 8), [1])]),
    "more caches than lengths": lambda m: m._run(
        Pass(), [6], [m.new_cache(8) for _ in range(4)], range(6), [None]
    ),
    "a cache of another model": lambda m: m.forward(
        IDS, NativeModel(built(LlamaConfig(**SIZES | {"num_key_value_heads": 1}))).new_cache(8)
    ),
    "narrow states": lambda m: NativeBlocks.__call__(m, torch.zeros(3, 48), m.new_cache(8)),
    "a row of states": lambda m: NativeBlocks.__call__(m, torch.zeros(64), m.new_cache(8)),
    "rows not read": lambda m: m.new_cache(8).rewind(3),
    "rows before the first": lambda m: m.new_cache(8).rewind(-1),
    "more logits than a segment": lambda m: m.run(
        [Segment(m.new_cache(8), [1, 2], read_out=3), Segment(m.new_cache(8), [3, 4])]
    ),
    "a segment of nothing": lambda m: m.run(
        [Segment(m.new_cache(8), []), Segment(m.new_cache(8), [3])]
    ),
    "a segment that does not fit": lambda m: m.run(
        [Segment(m.new_cache(8), [1]), Segment(m.new_cache(8), [1] * 9)]
    ),
    "two trees that are as large together": lambda m: m.run(
        [Segment(m.new_cache(8), [1, 2], chain(2)), Segment(m.new_cache(8), [1, 2, 3], chain(1))]
    ),
    "a tree of another size": lambda m: m.run(
        [Segment(m.new_cache(8), [1, 2]), Segment(m.new_cache(8), [1, 2], chain(2))]
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_over_what_is_out_of_range_is_refused(native: NativeModel, name: str) -> None:
    with pytest.raises(ValueError):
        PASSES[name](native)


@pytest.mark.parametrize(
    ("start", "chosen"),
    [(0, [7]), (4, [2]), (0, [1, 1]), (0, [2, 1]), (-1, [0]), (0, [-1]), (6, [0]), (9, [])],
)
def test_only_cached_rows_are_kept(native: NativeModel, start: int, chosen: list[int]) -> None:
    cache = native.new_cache(8)
    native.forward(IDS, cache)
    with pytest.raises(ValueError):
        cache.keep(start, chosen)
    assert cache.length == 6
    cache.keep(4, [1])
    assert cache.length == 5


LIES: dict[str, Callable[[PreTrainedModel], object]] = {
    "an embedding": lambda m: wide(m.model.embed_tokens, 203, 48),
    "a head": lambda m: wide(m.lm_head, 203, 32),
    "rows of a head": lambda m: wide(m.lm_head, 100, 64),
    "queries": lambda m: wide(m.model.layers[0].self_attn.q_proj, 32, 64),
    "inputs of keys": lambda m: wide(m.model.layers[1].self_attn.k_proj, 32, 32),
    "an output": lambda m: wide(m.model.layers[1].self_attn.o_proj, 64, 32),
    "a gate": lambda m: wide(m.model.layers[2].mlp.gate_proj, 64, 64),
    "a down projection": lambda m: wide(m.model.layers[2].mlp.down_proj, 64, 48),
    "a norm": lambda m: wide(m.model.norm, 32),
    "a norm of a block": lambda m: wide(m.model.layers[0].post_attention_layernorm, 16),
    "heads": lambda m: setattr(m.config, "num_attention_heads", 8),
    "key heads": lambda m: setattr(m.config, "num_key_value_heads", 3),
    "no key heads": lambda m: setattr(m.config, "num_key_value_heads", 0),
    "the size of a head": lambda m: setattr(m.config, "head_dim", 32),
    "an odd size of a head": lambda m: setattr(m.config, "head_dim", 8),
    "the width": lambda m: setattr(m.config, "hidden_size", 128),
    "the inner width": lambda m: setattr(m.config, "intermediate_size", 4096),
}


def wide(module: nn.Module, *shape: int) -> None:
    module.weight = nn.Parameter(torch.ones(*shape, dtype=torch.bfloat16), requires_grad=False)


@pytest.mark.parametrize("name", LIES)
def test_weights_of_another_shape_than_the_config_says_are_refused(
    model: PreTrainedModel, name: str
) -> None:
    LIES[name](model)
    with pytest.raises(ValueError):
        NativeModel(model).new_cache(8)


def packed(outputs: int = 32, inputs: int = 64, group: int = 32, bits: int = 4) -> nn.Module:
    weight = torch.randn(outputs, inputs)
    grid = minmax_grid(weight.view(outputs, -1, group), bits, "symmetric")
    return PackedLinear(QuantizedWeight(grid, grid.codes(weight).byte()))


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_of_any_width_are_read_to_their_end_and_no_further(bits: int) -> None:
    for outputs, inputs, group in ((16, 32, 32), (48, 96, 96), (32, 64, 32)):
        linear = NativeLinear(packed(outputs, inputs, group, bits))
        for rows in (1, 2, 3, 8, 13):
            assert linear(torch.randn(rows, inputs)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("scale", (16, 2)),
        ("scale", (32, 3)),
        ("zero", (32, 1)),
        ("zero", (24, 2)),
        ("codes", (24, 64)),
        ("codes", (32, 8)),
    ],
)
def test_packed_tables_that_do_not_fit_together_are_refused(
    name: str, shape: tuple[int, int]
) -> None:
    tables = {"scale": (32, 2), "zero": (32, 2), "codes": (32, 64)}
    made = {name: torch.ones(*shape) for name, shape in (tables | {name: shape}).items()}
    grid = QuantGrid(4, made["scale"], made["zero"])
    with pytest.raises((ValueError, RuntimeError)):
        NativeLinear(PackedLinear(QuantizedWeight(grid, made["codes"].byte())))


def product(linear: nn.Module, *shape: int, rounded: bool = False) -> object:
    return NativeLinear(linear, rounded=rounded)(torch.zeros(*shape))


PRODUCTS: dict[str, Callable[[], object]] = {
    "1 input": lambda: product(nn.Linear(1, 32), 1),  # fills no register
    "7 inputs, rounded": lambda: product(nn.Linear(7, 32), 7, rounded=True),
    "24 inputs": lambda: product(nn.Linear(24, 32), 24),
    "63 inputs, rounded": lambda: product(nn.Linear(63, 32), 63, rounded=True),
    "half the inputs": lambda: product(nn.Linear(64, 32), 32),
    "half the inputs of codes": lambda: product(packed(), 32),
    "twice the inputs": lambda: product(nn.Linear(64, 32), 2, 128),
    "a quarter of the inputs of codes": lambda: product(packed(), 4, 16),
    "no ranks": lambda: top_k(torch.zeros(4, 50), 0),
    "negative ranks": lambda: top_k(torch.zeros(4, 50), -3),
    "ranks of a vector": lambda: top_k(torch.zeros(50), 2),
    "ranks of three dimensions": lambda: top_k(torch.zeros(2, 2, 2), 1),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_or_ranks_of_what_does_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        PRODUCTS[name]()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_harms_nothing(model: PreTrainedModel, value: float) -> None:
    logits = torch.full((3, 37), value)
    logits[1, 20] = 1.0
    assert (top_k(logits, 50)[1] < 37).all() and top_k(logits.double(), 2)[1].shape == (3, 2)
    for linear in (nn.Linear(64, 32), packed()):
        for rounded in (False, True):
            x = torch.full((5, 64), value)
            assert NativeLinear(linear, rounded=rounded)(x).shape == (5, 32)
    model.model.layers[1].mlp.up_proj.weight.data[3] = value
    model.model.embed_tokens.weight.data[5] = value
    native = NativeModel(model)
    hidden, logits = native.forward(IDS, native.new_cache(8), read_out=6)
    assert hidden.shape == (6, 64) and logits.shape == (6, 203)


def test_models_from_files_are_read(current: Settings) -> None:
    folder = current.root / "models" / "converted"
    folder.mkdir(parents=True)
    convert(write_toy(current.root / "toy.gguf"), folder)
    for name in ("toy", str(folder)):
        native = NativeModel(load(name, dtype=torch.bfloat16).model)
        cache = native.new_cache(300)  # longer than its context
        assert native.read(torch.arange(300) % 512, cache).isfinite().all()


def test_a_library_with_other_structures_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = (*structures.Cache._fields_, ("more", ctypes.c_int64))
    larger = type("Cache", (ctypes.Structure,), {"_fields_": fields})
    others = [larger if x is structures.Cache else x for x in structures.STRUCTURES]
    monkeypatch.setattr(structures, "STRUCTURES", others)
    with pytest.raises(OSError, match="size of Cache is 16 in the library, 24 here"):
        structures.Kernels(library(), "plain")


def starved() -> str:
    """What a pass ends with, in a process without memory for as many threads as it begins."""
    native = NativeModel(built(LlamaConfig(**SIZES)))
    cache = native.new_cache(8)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    torch.get_num_threads = lambda: 10_000
    try:
        native.forward(IDS, cache)
    except MemoryError:
        return f"refused, {cache.length} rows"
    return "done"


@pytest.mark.skipif(SANITIZERS in os.environ, reason="they map terabytes of addresses")
def test_threads_that_cannot_start_are_an_error_and_nobody_waits_for_them() -> None:
    assert elsewhere(starved) == "refused, 0 rows"


def test_memory_that_runs_out_is_an_error(native: NativeModel) -> None:
    """Nothing is thrown through C."""
    cache = native.new_cache(8)
    head, heads = native.structure.head, native.structure.heads
    native.structure.head = native.structure.heads = 2**30
    with pytest.raises(MemoryError):
        native.forward(IDS, cache)
    native.structure.head, native.structure.heads = head, heads
    assert cache.length == 0 and native.forward(IDS, cache)[0].isfinite().all()
