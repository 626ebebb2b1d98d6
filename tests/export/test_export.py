"""Exported folders: loaded by plain transformers, measured and read again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError, ModelError
from backend.export import reading
from backend.export.card import ModelOrigin, model_card
from backend.export.formats import Layout, bits_per_weight, read_layout
from backend.export.reading import load_packed, read_layers
from backend.export.writing import export
from backend.models.blocks import block_linears, to_bfloat16
from backend.models.sources.quantized import PackedGroup
from backend.printable import readable_bytes
from backend.quantization import GRID_NAMES
from backend.quantization.grid import QuantizedWeight
from backend.quantization.packed_linear import PackedLinear, has_codes
from backend.quantization.range_search import search_range

PlainLogits = Callable[..., Tensor]
IDS = [[1, 5, 9, 200, 31, 44, 7, 8], [3, 3, 2, 100, 50, 60, 70, 80]]


@pytest.fixture
def exported(toy, quantized, tmp_path: Path):
    """Quantize and export the toy. Return the folder and the layers."""

    def make(
        format: str = "compressed-tensors",
        bits: int = 4,
        size: int = 32,
        grid_type: str = "symmetric",
        stored: torch.dtype = torch.float16,
    ):
        layers = quantized(bits, size, grid_type)
        layout = Layout("slimscope" if grid_type == "offset" else format, bits, size, grid_type)
        folder = tmp_path / "model"
        folder.mkdir()
        export(toy.model, toy.tokenizer, layers, layout, stored, folder, "# card")
        return folder, layers

    return make


MIXED = {"q_proj": 2, "v_proj": 6, "down_proj": 5}  # the others 3 bits


@pytest.mark.parametrize("format", ["compressed-tensors", "slimscope"])
def test_layers_of_different_widths_share_a_file(
    toy, quantized, plain_logits: PlainLogits, tmp_path: Path, format: str
) -> None:
    """All readers get the measured weights, and each code takes only its bits."""
    created = {bits: quantized(bits, 32, "symmetric") for bits in (3, *MIXED.values())}
    width = {name: MIXED.get(name.rpartition(".")[2], 3) for name in created[3]}
    layers = {name: created[bits][name] for name, bits in width.items()}
    for name, layer in layers.items():
        toy.model.get_submodule(name).weight.data = layer.dense()
    groups = tuple(
        PackedGroup(tuple(n for n, b in width.items() if b == bits), bits, 32)
        for bits in MIXED.values()
    )
    layout, folder = Layout(format, 3, 32, "symmetric", groups), tmp_path / "mixed"
    folder.mkdir()
    export(toy.model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
    assert read_layout(folder) == layout and layout.width == "2 to 6 bits"
    again, _ = read_layers(folder)
    assert all(torch.equal(again[n].dense(), layer.dense()) for n, layer in layers.items())
    stored = load_file(folder / "model.safetensors")
    for name, layer in layers.items():
        words = stored[f"{name}.weight_packed"].shape[1]
        assert words == -(-layer.codes.shape[1] * width[name] // 32)
    if format == "compressed-tensors":
        assert torch.equal(plain_logits(folder), logits(toy.model))


def logits(model) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


@pytest.fixture
def plain_logits(plain_transformers: Callable[..., object], tmp_path: Path) -> PlainLogits:
    """Return the logits of the model in a folder, computed by plain transformers."""

    def ask(folder: Path, dequantize: bool = False) -> Tensor:
        out = str(tmp_path / "logits.safetensors")
        plain_transformers(folder=str(folder), ids=IDS, logits=out, dequantize=dequantize)
        return load_file(out)["logits"]

    return ask


@pytest.mark.parametrize(("bits", "size"), [(3, 32), (4, 0), (2, 64)])
def test_stock_transformers_gives_the_same_logits_to_the_bit(
    exported, toy, plain_logits: PlainLogits, bits: int, size: int
) -> None:
    folder, _ = exported(bits=bits, size=size)
    assert torch.equal(plain_logits(folder), logits(toy.model))


@pytest.mark.parametrize(("stored", "within"), [(torch.float16, 0.02), (torch.float32, 1e-5)])
def test_an_asymmetric_grid_needs_dequantize(
    exported, toy, plain_logits: PlainLogits, stored: torch.dtype, within: float
) -> None:
    folder, _ = exported(bits=3, grid_type="zero-point", stored=stored)
    result = plain_logits(folder, dequantize=True)
    assert (result - logits(toy.model)).abs().max() < within


@pytest.mark.parametrize("grid_type", GRID_NAMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_file_is_as_large_as_its_bits(exported, bits: int, grid_type: str) -> None:
    folder, layers = exported(bits=bits, grid_type=grid_type)
    tensors = load_file(folder / "model.safetensors")
    linears = sum(
        t.numel() * t.element_size()
        for name, t in tensors.items()
        if name.rpartition(".")[0] in layers and not name.endswith("weight_shape")
    )
    weights = sum(layer.codes.numel() for layer in layers.values())
    expected = bits_per_weight(bits, 32, grid_type, "float16") * weights / 8
    assert linears == pytest.approx(expected, rel=0.015)


def test_layers_left_dense_are_named_in_the_config(
    exported, toy, quantized, plain_logits: PlainLogits, tmp_path: Path
) -> None:
    layers = quantized()
    some = {name: layer for name, layer in layers.items() if ".down_proj" not in name}
    layout = Layout("compressed-tensors", 4, 32, "symmetric")
    (folder := tmp_path / "some").mkdir()
    export(toy.model, toy.tokenizer, some, layout, torch.float32, folder, "")
    ignored = json.loads((folder / "config.json").read_text())["quantization_config"]["ignore"]
    assert "lm_head" in ignored and "model.layers.2.mlp.down_proj" in ignored
    assert torch.equal(plain_logits(folder), logits(toy.model))
    with pytest.raises(ConfigError, match="leave single layers"):
        export(
            toy.model,
            toy.tokenizer,
            some,
            Layout("gptq", 4, 32, "symmetric"),
            torch.float16,
            folder,
            "",
        )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("grid_type", GRID_NAMES)
def test_packed_inference_computes_as_bfloat16(exported, toy, bits: int, grid_type: str) -> None:
    folder, _ = exported(bits=bits, grid_type=grid_type)
    exact, messages = logits(toy.model), []
    packed = load_packed(folder, messages.append)
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == 21 and not messages
    rounded = logits(toy.model.bfloat16())
    noise = (rounded.float() - exact).abs().max()
    assert (logits(packed).float() - exact).abs().max() < 3 * noise


def test_transposed_layers_are_written_the_way_their_model_has_them(toy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(sizes).eval()
    layers = {}
    for linear in block_linears(model, 0).values():
        grid = search_range(linear.read(), 4, 32, "symmetric", "minmax")
        layers[linear.name] = QuantizedWeight(grid, grid.codes(linear.read()).to(torch.uint8))
        linear.write(layers[linear.name].dense())
    layout = Layout("dense", 4, 32, "symmetric")
    export(model, toy.tokenizer, layers, layout, torch.float32, tmp_path, "")
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(20)[None]
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ConfigError, match="transposed"):
        layout = Layout("compressed-tensors", 4, 32, "symmetric")
        export(model, toy.tokenizer, layers, layout, torch.float32, tmp_path, "")


def test_packed_weights_that_were_changed_are_refused(exported, tmp_path: Path) -> None:
    folder, _ = exported()
    with Checkpoints(tmp_path / "run").write("model") as draft:
        shutil.copytree(folder, draft, dirs_exist_ok=True)
    weights = tmp_path / "run" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-50] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors has changed"):
        load_packed(weights.parent)


@pytest.mark.parametrize(
    ("format", "grid_type", "said"),
    [
        ("compressed-tensors", "symmetric", "bit-identical"),
        ("compressed-tensors", "zero-point", "CompressedTensorsConfig(dequantize=True)"),
        ("gptq_v2", "zero-point", "gptqmodel"),
        ("slimscope", "offset", "a format of Slimscope's own"),
        ("dense", "symmetric", "without gains in size or speed"),
    ],
)
def test_the_card_has_loading_instructions(format: str, grid_type: str, said: str) -> None:
    layout = Layout(format, 3, 64, grid_type)
    card = model_card(
        "Toy",
        "dlqat-0001",
        "DL-QAT",
        ModelOrigin(),
        "A note.",
        layout,
        3.25,
        {"Dense": 12.5, "DL-QAT": 13.25},
        {"bits": 3},
        {"training": {"corpus": "toystories"}},
    )
    assert said in card and "| DL-QAT | 13.250 |" in card and "A note." in card
    assert "3 bits, groups of 64" in card and "dlqat-0001" in card and "toystories" in card


def test_groups_that_the_native_decoder_cannot_read_are_decoded_in_16_bits(exported, toy) -> None:
    folder, layers = exported(size=16, format="slimscope")
    messages = []
    packed = load_packed(folder, messages.append)
    why = "the native decoder reads codes in groups of a multiple of 32"
    assert messages == [f"{len(layers)} of {len(layers)} layers are decoded in 16 bits: {why}."]
    assert not any(isinstance(module, PackedLinear) for module in packed.modules())
    assert (logits(packed).float() - logits(toy.model)).abs().max() < 0.5


def test_without_a_compiler_packed_weights_are_expanded_and_logged(
    exported, toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, layers = exported(bits=8)
    monkeypatch.setattr(reading, "obstacle", lambda _: "There is no compiler.")
    messages = []
    packed = load_packed(folder, messages.append)
    assert not any(map(has_codes, packed.modules()))
    sizes = [readable_bytes(2 * sum(x.codes.numel() for x in layers.values()))] * 2
    words = "Packed weights are expanded to 16 bits, {} of memory instead of {}."
    assert messages == [f"{words.format(*sizes)} There is no compiler."]
    to_bfloat16(toy.model)
    assert torch.equal(logits(packed), logits(toy.model))
