"""What a method makes of a model does not depend on the units its weights are written in.

Factors are powers of two: where nothing may differ, not a bit does. What cannot be the same has a
bound in `DIFFERENT`; docs/results/invariance.md says why.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from itertools import islice

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import ALL
from tests.invariance.model_changes import CHANGES, Changed, change
from tests.invariance.outcomes import METHODS, Outcome

UNIT = 64  # hidden channels of the MLP that stay neighbors: a multiple of every group
REORDERED = (0.002, 1e-4)  # sums in another order: entries next to a threshold, and nats per token
Bound = tuple[float, float]  # share of a layer's entries that may differ, nats per token


def channelwise(bound: Bound | None, **others: Bound | None) -> dict[str, Bound | None]:
    """The bounds of a method that compares channels."""
    return {"channels": bound, "pairs": bound, **others}


IN_ORDER: dict[str, Bound | None] = {"order": (0.5, 0.2)}  # of columns
ROUNDED: dict[str, Bound | None] = {"layers": (0.0, 1e-5), "sixteen": (0.0, 1e-5)}  # trained
# None: another scale of a channel gives another grid, and whatever follows from that
DIFFERENT: dict[str, dict[str, Bound | None]] = {
    "magnitude": channelwise(None),
    "dsnot": channelwise((0.3, 0.15)),
    "sparsegpt": channelwise((0.4, 0.2), **IN_ORDER),
    "alps": IN_ORDER,  # eigenvectors of nearly equal eigenvalues
    "owl": {"pairs": (0.3, 0.1)},
    "sds": channelwise((0.5, 0.5)),
    "reconstruction": channelwise((0.0, 1e-3)),
    "rtn": channelwise(None),
    "hqq": channelwise(None),
    "rotated": {"pairs": None},
    "awq": channelwise((0.6, 0.05), **IN_ORDER),
    "rotated-gptq": {"pairs": None, **IN_ORDER},
    "gptq": channelwise(None, **IN_ORDER),
    "gptq-order": channelwise(None, **IN_ORDER),  # of columns of nearly equal energy
    **dict.fromkeys(("block-wise", "dlqat", "dlqat-kd"), channelwise(None, **IN_ORDER)),
    "amphista": channelwise(None, **ROUNDED),  # its layers are copies
}
SAME: Bound = (0.0, 0.0)


def bound_of(method: str, name: str) -> Bound | None:
    """What may differ; None: anything."""
    return DIFFERENT.get(method, {}).get(name, REORDERED if name == "order" else SAME)


def cells(method: str) -> Iterator[tuple[str, ...]]:
    """Changes to make at once: all of which nothing may differ, and each of the others alone."""
    yield tuple(name for name in CHANGES if bound_of(method, name) == SAME)
    yield from ((name,) for name in CHANGES if bound_of(method, name) not in (SAME, None))


ONE_BY_ONE = METHODS if ALL else ("wanda", "sparsegpt", "owl", "awq", "gptq", "amphista")
CELLS = [
    (method, names)
    for method in METHODS
    for names in islice(cells(method), None if method in ONE_BY_ONE else 1)
]


@pytest.fixture(scope="module")
def outcome(_toy: tuple[PreTrainedModel, Tensor]) -> Callable[[str], Outcome]:
    """Makes the outcome of a method on the model as it is, once."""
    model, ids = _toy
    return lru_cache(lambda name: METHODS[name](deepcopy(model), ids[:20, :32]))


def difference(changed: Changed, before: Outcome, after: Outcome) -> tuple[float, float, str]:
    """The share of entries that differ, the change of the loss, and the stage that is kept now."""
    shares = [changed.differing(W, after.entries[stage]) for stage, W in before.entries.items()]
    moved = [abs(after.losses[stage] - loss) for stage, loss in before.losses.items()]
    kept = "" if after.kept == before.kept else after.kept
    return max(shares, default=0.0), max(moved), kept


@pytest.mark.parametrize(
    ("method", "names"), CELLS, ids=lambda x: x if str(x) == x else "+".join(x)
)
def test_a_model_that_only_looks_different_gives_the_same(
    method: str,
    names: tuple[str, ...],
    toy,
    calibration: Tensor,
    outcome: Callable[[str], Outcome],
) -> None:
    model = toy()
    for name in names:
        changed = change(model, name, UNIT)
    found = METHODS[method](model, calibration[:20, :32])
    share, moved, kept = difference(changed, outcome(method), found)
    most = bound_of(method, names[0])
    assert most and share <= most[0] and moved <= most[1]
    assert not kept or most[0]  # other masks may rank otherwise


@pytest.mark.parametrize("name", CHANGES)
def test_the_function_stays_the_same(name: str, toy, calibration: Tensor) -> None:
    changed = change(toy(), name).model
    logits, expected = (model(input_ids=calibration[:4]).logits for model in (changed, toy()))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if name == "order" else 0)
