"""Mixtures of experts, and packed embeddings and heads: read by us, by transformers, as GGUF."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from backend.errors import ConfigError, ModelError
from backend.export.formats import FORMATS, ExportRequirements, Layout, check_format, read_layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.types import fitting, type_for_codes
from backend.export.gguf.writing import encode_codes, encode_weight, holds_shared_scales, write_gguf
from backend.export.reading import DequantizedLinears, load_dequantized, load_packed, read_layers
from backend.export.sizes import gguf_bytes, quantized_bytes
from backend.export.writing import export
from backend.models.families.experts import split_experts
from backend.models.loading import LoadedModel
from backend.models.saving import save
from backend.models.sources.catalog import inspect
from backend.models.sources.headers import read_headers
from backend.models.sources.quantized import PackedGroup
from backend.quantization.config import DLQATConfig
from backend.quantization.plan import QuantSettings, embedding_search, plan
from backend.quantization.range_search import quantize_embedding
from backend.reporter import SilentReporter
from backend.settings import Settings
from tests.models.tiny_models import FAMILIES

IDS = torch.arange(16).view(2, 8) * 7 + 3
EXPERTS = 11  # two digits, which sort differently as text
OWN = {"qwen3_moe": {"norm_topk_prob": True}, "olmoe": {"num_key_value_heads": 4}}
AS_GGUF = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "olmoe": "olmoe"}


def mixture(family: str) -> PreTrainedModel:
    """Return a random model with float16 numbers as weights and linears as experts."""
    torch.manual_seed(0)
    count = "num_local_experts" if family == "mixtral" else "num_experts"
    fields = {**FAMILIES[family], count: EXPERTS, "num_hidden_layers": 2, **OWN.get(family, {})}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.data = (parameter.data * (1 + 3 * (parameter.dim() > 1))).half().float()
    split_experts(model)
    return model


@pytest.fixture
def folder(current) -> Path:
    (current.root / "models").mkdir(parents=True)
    return current.root / "models" / "mixture"


@pytest.fixture
def exported(toy: LoadedModel, quantized, folder: Path) -> Callable[..., PreTrainedModel]:
    def make(
        family: str, format: str = "compressed-tensors", grid: str = "symmetric", left: str = "none"
    ) -> PreTrainedModel:
        layers = quantized(4, 16, grid, model := mixture(family), left)
        folder.mkdir()
        layout = Layout(format, 4, 16, grid)
        export(model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
        return model

    return make


def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("family", "format", "grid", "left"),
    [
        ("mixtral", "compressed-tensors", "symmetric", "none"),
        ("mixtral", "compressed-tensors", "symmetric", "layers.0."),
        ("phimoe", "compressed-tensors", "symmetric", "down_proj"),
        ("qwen3_moe", "compressed-tensors", "symmetric", "none"),
        ("deepseek_v2", "compressed-tensors", "symmetric", "none"),
        ("qwen3_moe", "slimscope", "offset", "layers.1."),
        ("olmoe", "slimscope", "zero-point", "none"),
    ],
)
def test_experts_are_read_as_they_were_measured(
    exported, plain_transformers, folder: Path, family: str, format: str, grid: str, left: str
) -> None:
    """Bit for bit by us; transformers unpacks experts in float16."""
    model = exported(family, format, grid, left=left)
    facts, expected = inspect(str(folder)), logits(model)
    assert torch.equal(logits(load_dequantized(folder, torch.float32)), expected)
    assert logits(load_packed(folder)).isfinite().all()
    stored = DequantizedLinears(folder, facts.matrices)
    for block in range(2):
        for linear, W in stored.block(block):
            assert torch.equal(W, model.get_submodule(linear.name).weight), linear.name
    if format == "compressed-tensors":
        out = str(folder.with_suffix(".safetensors"))
        plain_transformers(folder=str(folder), ids=IDS.tolist(), logits=out)
        torch.testing.assert_close(load_file(out)["logits"], expected, rtol=0, atol=0.01)


def test_experts_have_the_names_of_the_base_models_files(exported, folder: Path) -> None:
    exported("mixtral")
    names = {name for name in read_headers(folder) if ".experts.10." in name and "layers.1" in name}
    assert names == {
        f"model.layers.1.block_sparse_moe.experts.10.{w}.weight_{part}"
        for w in ("w1", "w2", "w3")
        for part in ("packed", "scale", "shape")
    }
    assert "model.layers.1.block_sparse_moe.gate.weight" in read_headers(folder)


@pytest.mark.parametrize(
    ("family", "how", "why"),
    [
        ("granitemoe", {}, "as one tensor"),
        ("mixtral", {"left": "layers.0.mlp.experts.3."}, "not quantized alike"),
        ("mixtral", {"grid": "zero-point"}, "without their zero-points"),
    ],
)
def test_experts_that_a_format_does_not_support_are_refused(
    exported, family: str, how: dict, why: str
) -> None:
    with pytest.raises(ConfigError, match="does not support") as refused:
        exported(family, **how)
    assert why in refused.value.why and "dense" in refused.value.do


def as_gguf(folder: Path, packed: bool = True) -> gguf.GGUFReader:
    write_gguf(folder, file := folder.with_suffix(".gguf"), "F32", packed, "It", SilentReporter())
    return gguf.GGUFReader(file)


@pytest.mark.parametrize("family", AS_GGUF)
@pytest.mark.parametrize("kind", ["packed", "saved", "of others"])
def test_gguf_holds_all_experts_of_a_block_as_one(
    exported, toy: LoadedModel, folder: Path, family: str, kind: str
) -> None:
    if kind == "packed":
        model = exported(family)
    else:
        model = mixture(family)
        save(model, toy.tokenizer, folder, "# card")
        if kind == "of others":
            AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    reader = as_gguf(folder, kind == "packed")
    assert reader.get_field("general.architecture").contents() == AS_GGUF[family]
    assert reader.get_field(f"{AS_GGUF[family]}.expert_count").contents() == EXPERTS
    tensors = {each.name: each.data for each in reader.tensors}
    for block, part in ((0, "gate"), (1, "up"), (1, "down")):
        name = f"model.layers.{block}.mlp.experts.10.{'down' if part == 'down' else 'gate_up'}_proj"
        W = model.get_submodule(name).weight
        own = {"gate": W[: len(W) // 2], "up": W[len(W) // 2 :], "down": W}[part]
        assert torch.equal(torch.tensor(tensors[f"blk.{block}.ffn_{part}_exps.weight"][10]), own)


@pytest.mark.parametrize(
    ("family", "changed", "why"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "normalizes the weights"),
        ("olmoe", {"norm_topk_prob": True}, "does not normalize"),
        ("olmoe", {"num_key_value_heads": 2}, "share keys"),
        ("olmoe", {"clip_qkv": 8.0}, "clips"),
        ("qwen2_moe", {"mlp_only_layers": [1]}, "no experts"),
        ("qwen2_moe", {"tie_word_embeddings": True}, "Its head"),
        ("olmoe", {"tie_word_embeddings": True}, "Its head"),
        ("qwen3_moe", {"attention_bias": True}, "biases"),
        ("mixtral", {"sliding_window": 16}, "sliding window"),
    ],
)
def test_mixtures_that_llama_cpp_computes_differently_are_refused(
    family: str, changed: dict, why: str
) -> None:
    config = mixture(family).config.to_dict()
    assert architecture_of(config).experts == EXPERTS
    with pytest.raises(ConfigError) as refused:
        architecture_of(config | changed)
    assert why in refused.value.why


# embeddings ---------------------------------------------------------------------------------------


EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
TEXT = torch.tensor([[1, 5, 9, 200, 31, 44, 7, 8]])


def settings(bits: int, size: int = 32, grid: str = "symmetric") -> QuantSettings:
    return QuantSettings(bits, size, grid, embedding_search(bits))


@pytest.fixture
def embedded(toy: LoadedModel, quantized: Callable, current: Settings) -> Callable[..., tuple]:
    """Export the toy with 4-bit layers and an embedding of `bits` bits, tied or with a separate
    head. Return the folder and the logits."""

    def make(
        bits: int,
        names: tuple[str, ...] = (EMBEDDING,),
        format: str = "slimscope",
        alike: bool = False,
        grid: str = "symmetric",
    ) -> tuple[Path, torch.Tensor]:
        layers = quantized(4, 32, grid)
        model = toy.model
        if HEAD in names:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
        for name in names:
            weight = model.get_submodule(name).weight
            layers[name] = quantize_embedding(weight.detach(), settings(bits), torch.float16)
            weight.data = layers[name].dense()
        others = () if alike else (PackedGroup(names, bits, 32),)
        (folder := current.root / "models" / "it").mkdir(parents=True)
        layout = Layout(format, 4, 32, grid, others)
        export(model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
        return folder, model(input_ids=TEXT).logits.detach()

    return make


@pytest.mark.parametrize("names", [(EMBEDDING,), (EMBEDDING, HEAD), (HEAD,)])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_measured_weights_are_read_back_exactly(
    embedded: Callable, names: tuple[str, ...], bits: int
) -> None:
    folder, expected = embedded(bits, names)
    assert read_layout(folder).of(names[0]) == Layout("slimscope", bits, 32, "symmetric")
    model = load_dequantized(folder, torch.float32)
    assert torch.equal(model(input_ids=TEXT).logits, expected)
    tied = HEAD not in names
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    packed = load_packed(folder)
    assert (packed(input_ids=TEXT).logits.float() - expected).abs().max() < 0.5
    facts = inspect(str(folder))
    assert f"{names[-1]} {bits}" in facts.quantized
    assert [x.name for x in facts.embeddings] == [EMBEDDING, *(() if tied else [HEAD])]
    share = "already rounded" in facts.note
    assert share and facts.bytes < (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("bits", "names", "alike", "dequantize", "within"),
    [
        (4, (EMBEDDING,), True, True, 0.02),
        (4, (EMBEDDING, HEAD), True, True, 0.02),
        (8, (HEAD,), False, False, 0.0),
    ],
)
def test_transformers_reads_all_settings_of_the_form(
    embedded: Callable,
    plain_transformers: Callable,
    tmp_path: Path,
    bits: int,
    names: tuple,
    alike: bool,
    dequantize: bool,
    within: float,
) -> None:
    folder, expected = embedded(bits, names, "compressed-tensors", alike)
    out = str(tmp_path / "logits.safetensors")
    asked = {"folder": str(folder), "ids": TEXT.tolist(), "logits": out}
    plain_transformers(**asked, dequantize=dequantize)
    assert (load_file(out)["logits"] - expected).abs().max() <= within


REQUIRED = ExportRequirements(4, "symmetric", "float16", False, True, frozenset({(64, 64)}))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("choice", "can"),
    [
        ({"embedding": 8}, {"slimscope"}),
        ({"head": 8}, {"slimscope", "compressed-tensors"}),
        ({"embedding": 4, "uniform_embedding": True}, {"slimscope", "compressed-tensors"}),
    ],
)
def test_an_unsuitable_format_is_refused_with_suitable_ones(
    format: str, choice: dict, can: set[str]
) -> None:
    if format in can:
        check_format(format, replace(REQUIRED, **choice))
        return
    with pytest.raises(ConfigError, match="or the format slimscope") as refused:
        check_format(format, replace(REQUIRED, **choice))
    assert refused.value.field == "embedding"


@pytest.mark.parametrize(
    ("bits", "columns", "kind"),
    [(8, 64, "Q8_0"), (6, 64, "Q8_0"), (4, 64, "Q4_0"), (6, 512, "Q6_K")],
)
def test_the_codes_of_an_embedding_are_carried_into_gguf_exactly(
    bits: int, columns: int, kind: str
) -> None:
    W = torch.randn(96, columns, generator=torch.Generator().manual_seed(1)) * 0.02
    layer = quantize_embedding(W, settings(bits), torch.float16)
    assert type_for_codes("Q4_0", Layout("slimscope", bits, 32, "symmetric"), columns) == kind
    stored = encode_codes("it", layer, Kind[kind])
    again = torch.from_numpy(gguf.quants.dequantize(stored, Kind[kind]))
    assert torch.equal(again, layer.dense())


def test_rounding_to_q6_k_and_rows_its_blocks_do_not_divide() -> None:
    W = torch.randn(8, 512, generator=torch.Generator().manual_seed(2))
    again = torch.from_numpy(gguf.quants.dequantize(encode_weight("it", W, Kind.Q6_K), Kind.Q6_K))
    assert 0.001 < (again - W).norm() / W.norm() < 0.03
    free = quantize_embedding(W, settings(5), torch.float16)
    assert holds_shared_scales(quantize_embedding(W, settings(6), torch.float16))
    assert not holds_shared_scales(free)
    assert [fitting("Q6_K", n) for n in (512, 96, 36)] == ["Q6_K", "Q8_0", "F16"]


@pytest.mark.parametrize(
    ("bits", "linears", "kind"), [(8, "Q4_0", "Q8_0"), (4, "Q4_0", "Q4_0"), (8, "F32", "F32")]
)
def test_a_gguf_file_of_it_is_small(
    embedded: Callable, tmp_path: Path, bits: int, linears: str, kind: str
) -> None:
    folder, _ = embedded(bits)
    write_gguf(folder, tmp_path / "it.gguf", linears, True, "Toy", SilentReporter())
    reader = gguf.GGUFReader(tmp_path / "it.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert tensors["token_embd.weight"].tensor_type == Kind[kind] and "output.weight" not in tensors
    layers, _ = read_layers(folder)
    read = gguf.quants.dequantize(tensors["token_embd.weight"].data, Kind[kind])
    assert torch.equal(torch.tensor(read), layers[EMBEDDING].dense())
    size = sum(t.n_bytes for t in reader.tensors)
    predicted = gguf_bytes(inspect(str(folder)), linears, kind) - 36 * 512
    assert size == pytest.approx(predicted, rel=0.001)


@pytest.mark.parametrize("names", [(EMBEDDING,), (EMBEDDING, HEAD)])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_predicted_size_is_that_of_the_file(
    embedded: Callable, names: tuple[str, ...], bits: int
) -> None:
    folder, _ = embedded(bits, names)
    facts = inspect(str(folder))
    created = plan(DLQATConfig(bits=4, group_size=32), facts, "slimscope", facts.embeddings, bits)
    predicted = quantized_bytes(facts, created, "slimscope", "float16")
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(predicted, rel=0.01)


def test_foreign_groups_are_read_if_they_name_layers(embedded: Callable, tmp_path: Path) -> None:
    folder, expected = embedded(8, (HEAD,), "compressed-tensors")
    model = load_dequantized(folder, torch.float32)
    assert torch.equal(model(input_ids=TEXT).logits, expected)
    assert isinstance(model, LlamaForCausalLM)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_1"]["targets"] = ["re:.*down_proj"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="invalid name"):
        read_layers(folder)
