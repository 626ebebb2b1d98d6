"""What a method makes of a model does not depend on the units its weights are written in.

Factors are powers of two: where nothing may differ, not a bit does. What cannot be the same has a
bound in `DIFFERENT`; docs/results/invariance.md says why.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.invariance import difference
from benchmarks.shared.model_changes import CHANGES, change
from benchmarks.shared.outcomes import METHODS, Outcome

UNIT = 64  # hidden channels of the MLP that stay neighbours: a multiple of every group
REORDERED = (0.002, 1e-4)  # sums in another order: entries next to a threshold, and nats per token
Bound = tuple[float, float]  # share of a layer's entries that may differ, nats per token


def channelwise(share: float, moved: float, **others: Bound) -> dict[str, Bound]:
    """The bounds of a method that compares channels."""
    return {"channels": (share, moved), "pairs": (share, moved), **others}


IN_ORDER = {"order": (0.5, 0.05)}  # of columns
DIFFERENT: dict[str, dict[str, Bound]] = {
    "magnitude": channelwise(0.5, 3.0),
    "dsnot": channelwise(0.3, 0.15),
    "sparsegpt": channelwise(0.4, 0.2, **IN_ORDER),
    "alps": {"order": (0.06, 0.02)},
    "owl": {"pairs": (0.05, 0.03)},
    "sds": channelwise(0.5, 0.15),
    "reconstruction": channelwise(0.0, 1e-3),
    "rtn": channelwise(0.85, 8.0),
    "hqq": channelwise(0.85, 8.0),
    "rotated": {"pairs": (0.85, 8.0)},
    "awq": channelwise(0.6, 0.05),
    "rotated-gptq": {"pairs": (0.85, 4.0), **IN_ORDER},
    "gptq": channelwise(0.85, 4.0, **IN_ORDER),
    "gptq-order": channelwise(0.85, 4.0),
    **dict.fromkeys(("block-wise", "dlqat", "dlqat-kd"), channelwise(0.85, 4.0, **IN_ORDER)),
    "amphista": channelwise(0.0, 0.4),
}


@pytest.fixture(scope="module")
def outcome(_toy: tuple[PreTrainedModel, Tensor]) -> Callable[[str], Outcome]:
    """Makes the outcome of a method on the model as it is, once."""
    model, ids = _toy
    return lru_cache(lambda name: METHODS[name](deepcopy(model), ids[:20, :32]))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_only_looks_different_gives_the_same(
    method: str, name: str, toy, calibration: Tensor, outcome: Callable[[str], Outcome]
) -> None:
    changed = change(toy(), name, UNIT)
    found = METHODS[method](changed.model, calibration[:20, :32])
    share, moved, kept = difference(changed, outcome(method), found)
    most = DIFFERENT.get(method, {}).get(name, REORDERED if name == "order" else (0.0, 0.0))
    assert share <= most[0] and moved <= most[1] and not kept


@pytest.mark.parametrize("name", CHANGES)
def test_the_function_stays_the_same(name: str, toy, calibration: Tensor) -> None:
    changed = change(toy(), name).model
    logits, expected = (model(input_ids=calibration[:4]).logits for model in (changed, toy()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if name == "order" else 0)
