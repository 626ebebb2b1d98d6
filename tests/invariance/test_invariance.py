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
# method -> change -> how much may differ: share of a layer's entries, nats per token
DIFFERENT: dict[str, dict[str, tuple[float, float]]] = {}


@pytest.fixture(scope="module")
def outcome(_toy: tuple[PreTrainedModel, Tensor]) -> Callable[[str], Outcome]:
    """Makes the outcome of a method on the model as it is, once."""
    model, ids = _toy
    return lru_cache(lambda name: METHODS[name](deepcopy(model), ids[:8, :64]))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_only_looks_different_gives_the_same(
    method: str, name: str, toy, calibration: Tensor, outcome: Callable[[str], Outcome]
) -> None:
    changed = change(toy(), name, UNIT)
    found = METHODS[method](changed.model, calibration[:8, :64])
    share, moved, kept = difference(changed, outcome(method), found)
    most = DIFFERENT.get(method, {}).get(name, REORDERED if name == "order" else (0.0, 0.0))
    assert share <= most[0] and moved <= most[1] and not kept


@pytest.mark.parametrize("name", CHANGES)
def test_the_function_stays_the_same(name: str, toy, calibration: Tensor) -> None:
    changed = change(toy(), name).model
    logits, expected = (model(input_ids=calibration[:4]).logits for model in (changed, toy()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if name == "order" else 0)
