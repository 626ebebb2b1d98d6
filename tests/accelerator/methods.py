"""Parts of the three methods, each as a function of a device; the results are on the CPU.

They run in a process of their own, because a stand-in accelerator cannot be removed again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics
from backend.decoding.draft_tree import Proposer, Tree
from backend.decoding.target_model import TargetModel
from backend.drafters.generate import TreeProposer, generate
from backend.drafters.registry import DRAFTERS
from backend.models.loading import load
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.redense import redense
from backend.pruning.weight_adjustment import adjust
from backend.quantization.plan import QuantSettings
from backend.quantization.range_search import search_range
from backend.quantization.registry import QUANTIZERS
from backend.statistics.distribution import histogram, ordered_values, tensor_statistics
from backend.statistics.tensors import histogram_edge
from tests.accelerator import device as stand_in
from tests.drafters.toys import drafter_of

ROWS, COLUMNS, TOKENS, GROUP, DAMPING = 12, 64, 400, 16, 0.01
PATTERNS = ("2:4", "50%")
SPACES = ("minmax", "mse", "weighted", "lsq")


def layer(device: str) -> tuple[Tensor, InputStatistics]:
    """Return a weight [rows, columns] and its input statistics."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(COLUMNS, COLUMNS, generator=random) / COLUMNS**0.5
    X = (mix + torch.eye(COLUMNS)) @ torch.randn(COLUMNS, TOKENS, generator=random)
    W = torch.randn(ROWS, COLUMNS, generator=random) * 0.1
    H = (X @ X.T / TOKENS).to(device)
    return W.to(device), InputStatistics(TOKENS, H.diagonal(), H, mean=X.mean(1).to(device))


def prune(device: str, name: str, pattern: str) -> Tensor:
    W, inputs = layer(device)
    return PRUNERS[name].prune(W, inputs, Pattern.parse(pattern), DAMPING)


def recover(device: str, soft: bool) -> tuple[Tensor, Tensor]:
    """Return the re-dense and the adjusted weights of a pruned layer."""
    W, inputs = layer(device)
    pattern = Pattern.parse("2:4")
    sparse = PRUNERS["wanda"].prune(W, inputs, pattern, DAMPING)
    return redense(sparse, W, inputs, 5), adjust(sparse, W, inputs, pattern, 5, soft)


def quantize(device: str, name: str) -> Tensor:
    W, inputs = layer(device)
    settings = QuantSettings(3, GROUP, "offset", "weighted")
    V, grid = QUANTIZERS[name].quantize(W, inputs, settings, DAMPING)
    return grid.nearest(V)


def find_range(device: str, space: str) -> Tensor:
    W, inputs = layer(device)
    return search_range(W, 3, GROUP, "zero-point", space, inputs.energy).nearest(W)


def describe(device: str) -> tuple[dict[str, float], Tensor]:
    """Return the statistics and the histogram of a weight."""
    W, _ = layer(device)
    ordered = ordered_values(W)
    edge = histogram_edge(float(ordered[0]), float(ordered[-1]))
    return tensor_statistics(ordered, 0.1), histogram(ordered, edge)[0]


def decode(device: str, architecture: str) -> Tensor:
    """Return the tokens of an answer that an untrained drafter drafts and trees verify."""
    model = load("toy", device=device, dtype=torch.float32).model
    target = TargetModel(model, native=False)
    tree = Tree([(0,), (0, 0), (1,)])
    proposer: Proposer | None = None
    if architecture:
        drafter = drafter_of(target, scale=0.2, architecture=architecture, heads=2)
        proposer = TreeProposer(drafter, target, tree)
    tokens = generate(target, proposer, [3, 4, 5, 6], 12, ends=[], lookup=not architecture)
    return torch.tensor([token.id for token in tokens])


CASES: dict[str, Callable[[str], Any]] = {
    **{
        f"prune {name} {pattern}": lambda device, name=name, pattern=pattern: prune(
            device, name, pattern
        )
        for name in PRUNERS
        for pattern in PATTERNS
    },
    **{f"recover {soft}": lambda device, soft=soft: recover(device, soft) for soft in (0, 1)},
    **{f"quantize {name}": lambda device, name=name: quantize(device, name) for name in QUANTIZERS},
    **{f"range {space}": lambda device, space=space: find_range(device, space) for space in SPACES},
    **{
        f"decode {name}": lambda device, name=name: decode(device, name) for name in ("", *DRAFTERS)
    },
    "statistics": describe,
}


def on_both_devices() -> dict[str, Any]:
    """Return case -> its results on the CPU and on the stand-in, or the error of the latter."""
    device = str(stand_in.install())
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        try:
            results[name] = _flat(case("cpu")), _flat(case(device))
        except Exception as error:  # a test reports it under the name of the case
            results[name] = repr(error)
    return results


def _flat(result: Any) -> list[float]:
    """Return all numbers of a result, read from its device."""
    if isinstance(result, Tensor):
        values: list[float] = result.cpu().double().flatten().tolist()
        return values
    if isinstance(result, dict):
        return [float(value) for value in result.values()]
    if isinstance(result, tuple):
        return [number for part in result for number in _flat(part)]
    return [float(result)]
