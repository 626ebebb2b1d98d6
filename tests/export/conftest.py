"""Random quantized layers, and a quantized toy model."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import LoadedModel, load
from backend.quantization.grid import QuantGrid, QuantizedWeight, zeros_of
from backend.quantization.range_search import search_range


@pytest.fixture
def make_layer() -> Callable[..., QuantizedWeight]:
    """Return random codes, scales and zero-points; scales are float16 numbers."""

    def make(
        rows: int = 32,
        columns: int = 64,
        bits: int = 4,
        groups: int = 2,
        grid_type: str = "symmetric",
        seed: int = 0,
        least_zero: int = 0,
    ) -> QuantizedWeight:
        random = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 2**bits, (rows, columns), generator=random, dtype=torch.uint8)
        scale = (torch.rand(rows, groups, generator=random) * 0.1 + 0.01).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1))
        if grid_type != "symmetric":
            zero = torch.randint(least_zero, 2**bits, scale.shape, generator=random).float()
        if grid_type == "offset":
            zero = zeros_of(scale, (-scale * (zero + 0.3)).half())
        return QuantizedWeight(QuantGrid(bits, scale, zero), codes)

    return make


@pytest.fixture
def toy() -> LoadedModel:
    """Return the toy, with all unquantized parameters rounded to float16."""
    loaded = load("toy")
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.half().float()
    return loaded


@pytest.fixture
def quantized(toy: LoadedModel) -> Callable[..., dict[str, QuantizedWeight]]:
    """Quantize every linear of the blocks of a model (the toy) whose name does not contain `left`,
    and write the result into the model."""

    def make(
        bits: int = 4,
        group_size: int = 32,
        grid_type: str = "symmetric",
        model: PreTrainedModel = toy.model,
        left: str = "none",
    ) -> dict[str, QuantizedWeight]:
        layers = {}
        for block in range(len(decoder_blocks(model))):
            for linear in block_linears(model, block).values():
                if left in linear.name:
                    continue
                W = linear.read()
                grid = search_range(W, bits, group_size, grid_type, "mse")
                codes = grid.codes(W).to(torch.uint8)
                layers[linear.name] = QuantizedWeight(grid.stored(torch.float16, grid_type), codes)
                linear.write(layers[linear.name].dense())
        return layers

    return make
