"""A part of the codes of a saved matrix is what unpacking all of them gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.export.code_tiles import read_codes
from backend.export.formats import Format, Layout
from backend.export.writing import layer_tensors
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.statistics.regions import Region

ROWS, COLUMNS, GROUP = 64, 96, 32
NAME = "model.layers.0.mlp.up_proj"


def layer(bits: int, grid_type: str) -> QuantizedWeight:
    random = torch.Generator().manual_seed(bits)
    shape, groups = (ROWS, COLUMNS), (ROWS, COLUMNS // GROUP)
    zero = torch.randint(1, 2**bits, groups, generator=random, dtype=torch.uint8)
    middle = torch.full(groups, 2 ** (bits - 1), dtype=torch.uint8)
    made = quantized_from(NAME, bits, {
        "codes": torch.randint(0, 2**bits, shape, generator=random, dtype=torch.uint8),
        "scale": torch.rand(groups, generator=random) + 0.1,
        "zero": middle if grid_type == "symmetric" else zero,
    })  # fmt: skip
    if grid_type != "offset":
        return made
    moved = QuantGrid(bits, made.grid.scale, made.grid.zero + 0.3).stored(torch.float16, "offset")
    return QuantizedWeight(moved, made.codes)


def save(folder: Path, made: QuantizedWeight, layout: Layout) -> None:
    """The layer as `writing` lays it out, and as much of a config as is read."""
    tensors = layer_tensors(made, layout, torch.float16)
    named = {f"{NAME}.{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    weights = {
        "num_bits": layout.bits, "group_size": layout.group_size, "strategy": "group",
        "symmetric": layout.grid == "symmetric", "type": "int", "dynamic": False,
    }  # fmt: skip
    packed = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
    }  # fmt: skip
    gptq = {
        "quant_method": "slimscope" if layout.format == "slimscope" else "gptq",
        "bits": layout.bits, "group_size": layout.group_size,
        "sym": layout.grid == "symmetric", "desc_act": False, "checkpoint_format": layout.format,
    }  # fmt: skip
    quantized = packed if layout.format == "compressed-tensors" else gptq
    config = {"model_type": "llama", "quantization_config": quantized}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("region", [Region((0, 64), (0, 96)), Region((5, 17), (21, 70))])
@pytest.mark.parametrize(
    ("format", "bits", "grid_type"),
    [
        ("compressed-tensors", 3, "symmetric"), ("compressed-tensors", 3, "zero-point"),
        ("compressed-tensors", 4, "symmetric"), ("gptq", 4, "zero-point"),
        ("gptq_v2", 3, "zero-point"), ("slimscope", 3, "offset"),
    ],
)  # fmt: skip
def test_a_part_is_that_of_the_whole(
    tmp_path: Path, format: Format, bits: int, grid_type: str, region: Region
) -> None:
    made = layer(bits, grid_type)
    save(tmp_path, made, Layout(format, bits, GROUP, grid_type))
    tile = read_codes(tmp_path, f"{NAME}.weight", region)
    assert tile is not None and tile.bits == bits
    rows, columns = slice(*region.rows), slice(*region.columns)
    assert np.array_equal(tile.codes, made.codes[rows, columns].numpy())
    levels = made.dense() / made.grid.scale.repeat_interleave(GROUP, 1)
    assert np.allclose(tile.levels, levels[rows, columns].numpy(), atol=1e-4)


def test_what_is_not_packed_has_no_codes(tmp_path: Path) -> None:
    save_file({f"{NAME}.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_codes(tmp_path, f"{NAME}.weight", Region((0, 4), (0, 4))) is None
