"""Mixtures of experts: packed separately, read by us and by transformers, and as GGUF."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backend.errors import ConfigError, SlimscopeError
from backend.export.formats import Layout
from backend.export.gguf.architecture import architecture_of
from backend.export.gguf.writing import write_gguf
from backend.export.reading import DequantizedLinears, load_dequantized, load_packed
from backend.export.writing import export
from backend.models.families.experts import split_experts
from backend.models.loading import LoadedModel
from backend.models.saving import save
from backend.models.sources.catalog import inspect
from backend.models.sources.headers import read_headers
from backend.reporter import SilentReporter
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


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: [tensors.pop(x) for x in [*tensors] if name in x] and None


def one_group(tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.mlp.experts.4.up_proj.weight_"
    tensors[f"{name}scale"] = tensors[f"{name}scale"][:, :1].clone()


@pytest.mark.parametrize(
    "damage",
    [
        without(".experts.4.up_proj."),
        without(".experts.4."),
        without(".experts.4.down_proj."),
        without(".experts.4.gate_proj.weight_scale"),
        one_group,
    ],
)
def test_damaged_experts_are_refused(exported, folder: Path, damage) -> None:
    exported("qwen3_moe")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    for read in (load_packed, as_gguf):
        with pytest.raises(SlimscopeError) as refused:
            inspect(str(folder))
            read(folder)
        assert refused.value.why and refused.value.do


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
