"""Quantized embeddings and heads: export, every reader, and damaged files."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from backend.errors import ConfigError, ModelError
from backend.export.formats import FORMATS, ExportRequirements, Layout, check_format, read_layout
from backend.export.gguf.types import fitting, type_for_codes
from backend.export.gguf.writing import encode_codes, encode_weight, holds_shared_scales, write_gguf
from backend.export.reading import load_dequantized, load_packed, read_layers
from backend.export.sizes import gguf_bytes, quantized_bytes
from backend.export.writing import export
from backend.models.loading import LoadedModel
from backend.models.sources.catalog import inspect
from backend.models.sources.quantized import PackedGroup
from backend.quantization.config import DLQATConfig
from backend.quantization.plan import QuantSettings, embedding_search, plan
from backend.quantization.range_search import quantize_embedding
from backend.reporter import SilentReporter
from backend.settings import Settings

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
IDS = torch.tensor([[1, 5, 9, 200, 31, 44, 7, 8]])


def settings(bits: int, size: int = 32, grid: str = "symmetric") -> QuantSettings:
    return QuantSettings(bits, size, grid, embedding_search(bits))


@pytest.fixture
def exported(toy: LoadedModel, quantized: Callable, current: Settings) -> Callable[..., tuple]:
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
        return folder, model(input_ids=IDS).logits.detach()

    return make


@pytest.mark.parametrize("names", [(EMBEDDING,), (EMBEDDING, HEAD), (HEAD,)])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_measured_weights_are_read_back_exactly(
    exported: Callable, names: tuple[str, ...], bits: int
) -> None:
    folder, expected = exported(bits, names)
    assert read_layout(folder).of(names[0]) == Layout("slimscope", bits, 32, "symmetric")
    model = load_dequantized(folder, torch.float32)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    tied = HEAD not in names
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    packed = load_packed(folder)
    assert (packed(input_ids=IDS).logits.float() - expected).abs().max() < 0.5
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
    exported: Callable,
    plain_transformers: Callable,
    tmp_path: Path,
    bits: int,
    names: tuple,
    alike: bool,
    dequantize: bool,
    within: float,
) -> None:
    folder, expected = exported(bits, names, "compressed-tensors", alike)
    out = str(tmp_path / "logits.safetensors")
    asked = {"folder": str(folder), "ids": IDS.tolist(), "logits": out}
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
    exported: Callable, tmp_path: Path, bits: int, linears: str, kind: str
) -> None:
    folder, _ = exported(bits)
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
    exported: Callable, names: tuple[str, ...], bits: int
) -> None:
    folder, _ = exported(bits, names)
    facts = inspect(str(folder))
    created = plan(DLQATConfig(bits=4, group_size=32), facts, "slimscope", facts.embeddings, bits)
    predicted = quantized_bytes(facts, created, "slimscope", "float16")
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(predicted, rel=0.01)


def _of_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"]["groups"][0] |= changes
        path.write_text(json.dumps(config))

    return change


def _of_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name))
        tensors |= {} if changed is None else {name: changed}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def _with_own_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    parts = {n: t for n, t in tensors.items() if n.startswith(f"{EMBEDDING}.")}
    tensors |= {n.replace(EMBEDDING, HEAD): t.clone() for n, t in parts.items()}
    _of_config(layers=[EMBEDDING, HEAD])(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _with_plain_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{HEAD}.weight"] = torch.zeros(512, 64, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_of_config(bits=4), "weight_packed is"),
        (_of_config(bits=9), "not supported"),
        (_of_config(bits="many"), "cannot be read"),
        (_of_config(group_size=64), "do not match groups of 64"),
        (_of_config(group_size=-1), "not supported"),
        (_of_config(layers=[]), "are empty or share"),
        (_of_config(layers=[HEAD]), "lm_head as quantized, but it is not"),
        (_of_config(layers=["model.layers.0.mlp.up_proj"]), "weight_packed is"),
        (_of_config(layers=[EMBEDDING] * 2), "share a layer"),
        (_of_config(grid="round"), "an unknown grid"),
        (_of_config(layers=["re:.*"]), "invalid name"),
        (_of_config(layers=[7]), "invalid name"),
        (_of_tensor(f"{EMBEDDING}.weight_scale", lambda _: None), "It has no weight_scale"),
        (_of_tensor(f"{EMBEDDING}.weight_scale", lambda t: t[:, :1].clone()), "do not match|shape"),
        (_of_tensor(f"{EMBEDDING}.weight_scale", lambda t: t * float("nan")), "not finite"),
        (_of_tensor(f"{EMBEDDING}.weight_shape", lambda t: t * 2), "weight_packed is"),
        (_of_tensor(f"{EMBEDDING}.weight_packed", lambda t: t[:100].clone()), "weight_packed is"),
        (_with_own_head, "ties model.embed_tokens.weight and lm_head.weight"),
        (_with_plain_head, "ties model.embed_tokens.weight and lm_head.weight"),
        (_cut, "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_in_words(
    exported: Callable, damage: Callable[[Path], None], said: str
) -> None:
    folder, _ = exported(8)
    damage(folder)
    with pytest.raises(ModelError) as refused:
        load_dequantized(folder, torch.float32)
    assert re.search(said, f"{refused.value.what} {refused.value.why}")


def test_foreign_groups_are_read_if_they_name_layers(exported: Callable, tmp_path: Path) -> None:
    folder, expected = exported(8, (HEAD,), "compressed-tensors")
    model = load_dequantized(folder, torch.float32)
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert isinstance(model, LlamaForCausalLM)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_1"]["targets"] = ["re:.*down_proj"]
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="invalid name"):
        read_layers(folder)
