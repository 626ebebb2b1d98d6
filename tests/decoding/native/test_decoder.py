"""The native decoder: the same logits as transformers, on every instruction set this machine has,
and PyTorch where it cannot be used."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from backend import compiler
from backend.compiler import CompilerError
from backend.decoding.draft_tree import NoDraft, PromptLookup, Tree
from backend.decoding.native import weights
from backend.decoding.native.model import NativeModel, Segment
from backend.decoding.native.weights import WIDTHS, NativeLinear
from backend.decoding.serving.loop import decode
from backend.decoding.target_model import TargetModel
from backend.kernels import library
from backend.kernels.library import kernels
from backend.models.blocks import block_linears
from backend.models.loading import load
from backend.quantization import GRID_NAMES
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import PackedLinear, pack_model
from tests.kernels.sets import VARIANTS, kernel_set

SIZES = {
    "vocab_size": 203,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WINDOW = 14  # shorter than what is read
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [4.0] * 4,
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
}
GEMMA = {
    **SIZES,
    "head_dim": 32,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "wide heads": LlamaConfig(**SIZES | {"num_attention_heads": 2}, head_dim=64),
    "odd heads": LlamaConfig(**SIZES | {"num_key_value_heads": 4}, head_dim=48),
    "mistral": MistralConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "llama 3.1": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral with windows": MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen2 with windows": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "gemma": GemmaConfig(**SIZES, head_dim=48),
    "gemma2": Gemma2Config(**GEMMA, attn_logit_softcapping=9.0, final_logit_softcapping=7.0),
    "gemma3": Gemma3TextConfig(
        **GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_theta=1e3
    ),
    "phi3": Phi3Config(**SIZES, pad_token_id=0, sliding_window=WINDOW),
    "phi3, long": Phi3Config(
        **SIZES, pad_token_id=0, original_max_position_embeddings=64, rope_parameters=LONG
    ),
}
TREE = Tree([(0,), (1,), (0, 0), (1, 0), (1, 1), (1, 0, 0)])


def built(config: PretrainedConfig) -> PreTrainedModel:
    """A bfloat16 model of random weights with clear choices, and norms and biases that matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(6.0)
        else:
            parameter.add_(0.3 * torch.randn_like(parameter) if "norm" in name else 0)
        if name.endswith("bias"):
            parameter.normal_()
    return model.to(torch.bfloat16)


def distance(logits: Tensor, expected: Tensor) -> float:
    """Root mean square difference, relative to the spread of the expected."""
    return ((logits.float() - expected).square().mean().sqrt() / expected.std()).item()


def tokens(model: PreTrainedModel, number: int) -> Tensor:
    return torch.randint(model.config.vocab_size, (number,), generator=torch.manual_seed(1))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    with torch.inference_mode():
        yield built(FAMILIES[request.param])


def test_two_parts_one_behind_the_other_are_the_whole(model: PreTrainedModel) -> None:
    native, ids = NativeModel(model), tokens(model, 24)
    before, behind = native.part(0, 1), native.part(1, native.structure.layers)
    stream = before.read(ids, before.new_cache(24))
    found, (whole, _) = (
        behind(stream, behind.new_cache(24)),
        native.forward(ids, native.new_cache(24)),
    )
    assert distance(found, whole.float()) < 0.05 < distance(stream, whole.float())


def test_a_tree_is_read_along_its_paths_and_the_kept_rows_go_on(model: PreTrainedModel) -> None:
    native, ids = NativeModel(model), tokens(model, 30)
    cache, context = native.new_cache(64), ids[:20]
    native.read(context, cache)
    nodes = ids[20:27]
    _, logits = native.forward(nodes, cache, TREE, len(nodes))
    path = TREE.lineage(6)
    alone = native.new_cache(64)
    native.read(context, alone)
    _, expected = native.forward(nodes[path], alone, read_out=len(path))
    assert torch.equal(logits[path], expected)  # to the last bit: drafts change no text
    cache.keep(20, path)
    assert cache.length == alone.length == 20 + len(path)
    after = [native.forward(ids[27:], each, read_out=3)[1] for each in (cache, alone)]
    assert torch.equal(*after)


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_weights_give_the_logits_of_their_values(variant: str, grid_type: str) -> None:
    model = built(LlamaConfig(**SIZES | {"intermediate_size": 128}))
    exact, layers = deepcopy(model).float(), {}
    weights = {"lm_head": model.lm_head.weight.float()}
    for linear in (x for n in range(3) for x in block_linears(model, n).values()):
        weights[linear.name] = linear.read().float()
    for number, (name, weight) in enumerate(weights.items()):
        bits = WIDTHS[number % len(WIDTHS)]  # another in each layer
        size = 32 if number % 2 else weight.shape[1]
        grid = minmax_grid(weight.view(len(weight), -1, size), bits, grid_type)
        layers[name] = layer = QuantizedWeight(grid, grid.codes(weight).byte())
        exact.get_submodule(name).weight.data = layer.dense()
    assert pack_model(model, layers) == []
    native, ids = NativeModel(model, kernel_set(variant)), tokens(model, 12)
    bits_of = {name: layer.grid.bits for name, layer in layers.items()}
    for block, layer in zip(range(3), native.structure.layer, strict=False):
        names = [f"model.layers.{block}.self_attn.{x}_proj" for x in ("q", "k", "v", "o")]
        widest = max(bits_of[name] for name in names[:3])
        assert (layer.qkv.format, layer.out.format) == (widest, bits_of[names[3]])
    assert native.structure.read_out.format == bits_of["lm_head"]
    _, logits = native.forward(ids, native.new_cache(12), read_out=12)
    assert distance(logits, exact(input_ids=ids[None]).logits[0]) < 0.03


def two_of_four(weight: Tensor) -> Tensor:
    kept = weight.abs().view(len(weight), -1, 4).topk(2).indices
    return torch.zeros(*weight.shape).view(len(weight), -1, 4).scatter(-1, kept, 1).view_as(weight)


ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 24)


@pytest.mark.parametrize("group", [32, 64, 192])
def test_two_of_four_codes_give_the_product_of_all(group: int) -> None:
    if not kernels().two_of_four:
        pytest.skip("this processor has no VNNI")
    torch.manual_seed(0)
    weight = torch.randn(80, 192)
    weight *= two_of_four(weight)
    weight[5] = 0  # fewer than two of four
    weight[6, ::4] = 0
    grid = minmax_grid(weight.view(len(weight), -1, group), 4, "symmetric")
    layer = QuantizedWeight(grid, grid.codes(weight).byte())
    linear = PackedLinear(layer, torch.randn(80))
    sparse, dense = NativeLinear(linear), NativeLinear(linear, sparse=False)
    assert sparse.sparse and not dense.sparse
    for rows in ROWS:
        x = torch.randn(rows, 192)
        torch.testing.assert_close(sparse(x), dense(x), rtol=1e-4, atol=1e-4)
        alone = torch.cat([sparse(row) for row in x.split(1)])
        assert torch.equal(sparse(x), alone)  # so drafts change no text


def test_what_is_not_two_of_four_or_has_few_zeros_stays_as_it_is() -> None:
    weight = torch.randn(32, 64)
    weight *= two_of_four(weight)
    for grid_type, changed in (("symmetric", 1.0), ("offset", 0.0), ("zero-point", 0.0)):
        weight[20, 36:40] = changed or weight[20, 36:40]  # one group of four
        grid = minmax_grid(weight.view(32, -1, 32), 4, grid_type)
        layer = QuantizedWeight(grid, grid.codes(weight).byte())
        assert not NativeLinear(PackedLinear(layer)).sparse
    linear = nn.Linear(64, 16, dtype=torch.bfloat16)
    linear.weight.data *= torch.rand(16, 64) >= 0.2
    assert not NativeLinear(linear).sparse


def test_a_pruned_model_is_decoded_without_its_zeros() -> None:
    model = built(FAMILIES["llama"])
    for linear in (x for n in range(3) for x in block_linears(model, n).values()):
        linear.layer.weight.data *= two_of_four(linear.layer.weight)
    native, ids = NativeModel(model), tokens(model, 24)
    layer = native.structure.layer[1]
    matrices = (layer.qkv, layer.out, layer.gate, layer.up, layer.down)
    sparse = bool(kernels().bfloat16)
    assert [matrix.format in weights.SPARSE for matrix in matrices] == [sparse] * 5
    assert native.structure.read_out.format not in weights.SPARSE
    _, logits = native.forward(ids, native.new_cache(24), read_out=24)
    assert distance(logits, model.float()(input_ids=ids[None]).logits[0]) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_token_has_the_same_logits_in_a_pass_over_any_number(variant: str, name: str) -> None:
    """So drafts change no text, in bfloat16 as little as in float32."""
    model = built(FAMILIES[name])
    native, ids, found = NativeModel(model, kernel_set(variant)), tokens(model, 24), []
    for number in (1, 2, 3, 5, 8, 24):
        cache = native.new_cache(24)
        found.append(
            torch.cat([native.forward(x, cache, read_out=len(x))[1] for x in ids.split(number)])
        )
    for logits in found[1:]:
        assert torch.equal(logits, found[0])


def test_greedy_text_is_that_of_pytorch_on_the_built_in_model() -> None:
    model = load("toy", dtype=torch.bfloat16).model
    native, plain = TargetModel(model), TargetModel(model, native=False)
    assert native.decoder.startswith("native")
    assert plain.decoder == "PyTorch"
    for prompt in ([1, 5, 9, 5, 9], [7]):
        texts = []
        for target, proposer in ((native, NoDraft()), (native, PromptLookup()), (plain, NoDraft())):
            steps = decode(target, proposer, prompt, 40)
            texts.append([token for step in steps for token in step.tokens])
        assert texts[0] == texts[1]  # whatever is drafted
        assert texts[0][:6] == texts[2][:6]  # until two tokens are nearly equally likely


# where it cannot be used --------------------------------------------------------------------------


@pytest.fixture
def library_file() -> str:
    """The decoder as it was built for other tests."""
    return library.library()._name


def forget_library() -> None:
    """Have it loaded again."""
    for cached in (library.library, library.kernels, library.kernels_or_none):
        cached.cache_clear()


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing has been built yet."""
    monkeypatch.setenv("SLIMSCOPE_CACHE_DIR", str(tmp_path))
    compiler.settings.cache_clear()
    forget_library()
    yield tmp_path
    monkeypatch.undo()
    compiler.settings.cache_clear()
    forget_library()


SCRIPT = """#!/bin/sh
[ "$1" = --version ] && exit
for last; do :; done
"""


@pytest.fixture
def use_compiler(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program the only compiler; in a script "$last" is the file that it writes."""
    monkeypatch.setattr(compiler, "COMPILERS", ())

    def use(content: str) -> None:
        program = no_cache / "my-compiler"
        program.write_text(content)
        program.chmod(0o755 if content else 0)
        monkeypatch.setenv("CXX", str(program))

    return use


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("", "no C++ compiler"),
        ("nonsense", "my-compiler"),
        (f"{SCRIPT}echo 'error: no such flag' >&2\nexit 1\n", "no such flag"),
        (f'{SCRIPT}echo nonsense > "$last"\n', ".so"),
    ],
)
def test_a_compiler_that_fails_leaves_decoding_to_pytorch(
    no_cache: Path, use_compiler: Callable[[str], None], script: str, why: str
) -> None:
    use_compiler(script)
    target = TargetModel(built(FAMILIES["llama"]))
    assert target.native is None and target.decoder.startswith("PyTorch; ")
    assert why in target.decoder
    assert ".so" in why or not list(no_cache.glob("native/*.so"))  # nothing is left behind


def test_a_cache_that_cannot_be_used_is_told(no_cache: Path) -> None:
    (no_cache / "native").write_text("a file")
    with pytest.raises(CompilerError, match="native"):
        library.library()


def test_code_others_could_have_put_there_is_not_loaded(
    library_file: str, no_cache: Path, use_compiler: Callable[[str], None]
) -> None:
    use_compiler(f"{SCRIPT}cp '{library_file}' \"$last\"\n")
    library.library()
    for pattern in ("native", "native/*.so"):
        (path,) = no_cache.glob(pattern)
        assert path.stat().st_mode & 0o077 == 0
        path.chmod(0o777)
        forget_library()
        with pytest.raises(CompilerError, match="Other users can write"):
            library.library()
        path.chmod(0o700)


def test_wrong_logits_are_found_and_pytorch_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = NativeModel.run

    def wrong(self: NativeModel, segments: Sequence[Segment]) -> list[tuple[Tensor, Tensor]]:
        return [(hidden, logits.flip(-1)) for hidden, logits in right(self, segments)]

    monkeypatch.setattr(NativeModel, "run", wrong)
    target = TargetModel(built(FAMILIES["llama"]))
    assert target.native is None
    assert "differ" in target.decoder
