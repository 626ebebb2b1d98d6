"""Tests of the shape of work on an accelerator: operations and copies that do not grow with the
size of a layer, because each of them is a launch or a wait."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.calibration.second_moments import InputStatistics
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import QUANTIZERS, BlockLayers
from tests.accelerator import device
from tests.fork_server import elsewhere

SHAPES = {"small": (16, 64), "large": (1024, 512)}  # more weights than a search on a CPU takes


def search(W: Tensor, method: str) -> None:
    search_range(W, 3, 32, "zero-point", method, W.square().mean(0))


def train(W: Tensor) -> None:
    """Run a layer of DL-QAT forward and backward."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=False)
    base.weight = nn.Parameter(W)
    layer = DLQATLinear(base, search_range(W, 3, 32, "symmetric", "minmax"), rank=4)
    device.copies.clear()
    device.calls.clear()
    layer(torch.ones(2, 4, W.shape[1], device=W.device)).sum().backward()


def gptq_group(W: Tensor) -> None:
    """Run GPTQ on rows of 64 inputs, which are one group."""
    inputs = InputStatistics(4, torch.ones(64, device=W.device), torch.eye(64, device=W.device))
    settings = QuantSettings(3, 64, "symmetric", "weighted")
    QUANTIZERS["gptq"].quantize(W.view(-1, 64), inputs, settings, 0.01)


def scale_inputs(W: Tensor) -> None:
    """Search the scales of AWQ for o_proj."""
    inputs = InputStatistics(4, W.square().mean(0), torch.eye(W.shape[1], device=W.device))
    QUANTIZERS["awq"].bases(
        BlockLayers(
            awq_block(W.shape[1]),
            {"mlp.down_proj": W},
            {"mlp.down_proj": inputs},
            {"mlp.down_proj": QuantSettings(3, 32, "symmetric", "minmax")},
        )
    )


class LlamaRMSNorm(nn.Module):
    """Stand-in of the norm whose name identifies a block of LLaMA's."""


def awq_block(width: int) -> nn.Module:
    block, attention = nn.Module(), nn.Module()
    for name in ("input_layernorm", "post_attention_layernorm"):
        block.add_module(name, LlamaRMSNorm())
    block.add_module("self_attn", attention)
    block.add_module("mlp", nn.Module())
    return block


CASES: dict[str, Callable[[Tensor], None]] = {
    **{
        f"search {method}": lambda W, method=method: search(W, method)
        for method in ("minmax", "mse", "weighted", "lsq", "hqq")
    },
    "train": train,
    "gptq": gptq_group,
    "awq": scale_inputs,
}
MAX_COPIES = {"gptq": 2, "awq": 1}  # for the Cholesky factor; for the errors of all scales


def counted() -> dict[str, dict[str, tuple[int, int]]]:
    """Return case -> shape -> operations and copies to the host."""
    device.install()
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        results[name] = {}
        for shape, size in SHAPES.items():
            W = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device.NAME)
            device.calls.clear()
            device.copies.clear()
            case(W)
            results[name][shape] = device.calls.total(), device.copies["to host"]
    return results


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, tuple[int, int]]]:
    return elsewhere(counted)


@pytest.mark.parametrize("case", CASES)
def test_a_large_layer_takes_the_operations_of_a_small_one(
    case: str, counts: dict[str, dict[str, tuple[int, int]]]
) -> None:
    small, large = (counts[case][shape] for shape in SHAPES)
    assert large == small
    assert large[1] <= MAX_COPIES.get(case, 0)
