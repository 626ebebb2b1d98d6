"""The sentences about a tensor say what its figures say."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.pruning.config import STAGE_LABELS
from backend.quantization import config as dlqat
from backend.statistics.reference import ReferenceTensor
from backend.statistics.tensors import TensorSnapshot
from tests.ui.conftest import mask_overlap
from ui.charts.series import Series
from ui.format import number, share
from ui.pages.weights.explanations import EXPLAINED, SENTENCES, explained
from ui.pages.weights.shape_text import peaks, shape_in_words
from ui.theme import stage_style

N = (400, 300)


@pytest.fixture(scope="module")
def dense() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(0)) * 0.02


def largest(dense: Tensor, share: float) -> Tensor:
    """`dense` with all but the largest `share` set to zero."""
    cut = dense.abs().flatten().quantile(1 - share)
    return dense * (dense.abs() > cut)


def noise(seed: int, std: float) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed)) * std


@pytest.fixture(scope="module")
def made(dense: Tensor) -> dict[str, Tensor]:
    """The story of a tensor: one peak, a peak each side of a dip, three peaks, two softer ones."""
    first = largest(dense, 0.5)
    redense = torch.where(first == 0, noise(1, 0.002), first)
    sds = largest(first + noise(1, 0.004), 0.5)
    return {"dense": dense, "first": first, "redense": redense, "sds": sds}


@pytest.fixture(scope="module")
def stages(dense: Tensor, made: dict[str, Tensor]) -> list[TensorSnapshot]:
    reference, errors = ReferenceTensor(dense), {"first": 0.2, "redense": 0.01, "sds": 0.1}

    def more(stage: str) -> dict[str, float]:
        overlap = mask_overlap(made[stage], made["first"])
        return {"relative_error": errors[stage], "mask_overlap": overlap}

    return [
        reference.measure(
            weight, tensor="a.weight", block=0, module="a", stage=stage,
            more=more(stage) if stage in errors else {},
        ).snapshot
        for stage, weight in made.items()
    ]  # fmt: skip


def series(taken: TensorSnapshot) -> Series:
    return Series(taken, STAGE_LABELS[taken.stage], stage_style(taken.stage))


def test_the_shape_of_each_step_is_recognised(stages: list[TensorSnapshot]) -> None:
    said = [shape_in_words(series(taken)) for taken in stages]
    assert said[0].startswith("One peak: no exact zeros")
    assert said[1].startswith("Two peaks, with a dip between them to 0 % of their height")
    assert "50.0 % exact zeros" in said[1]
    assert said[2].startswith("Three peaks, the middle one at zero")
    assert said[3].startswith("Two peaks")
    flat = np.random.default_rng(0).poisson(300, 256)
    assert len(peaks(flat)) <= 1
    assert len(peaks(np.zeros(256, dtype=int))) == 0


def test_each_figure_that_was_measured_has_a_row(stages: list[TensorSnapshot]) -> None:
    rows = {row.name: row.sentence for row in explained(stages, STAGE_LABELS)}
    assert list(rows) == list(EXPLAINED) and {*SENTENCES} == {*EXPLAINED}
    assert rows["zero_share"] == (
        "First pruning makes 50.0 % of the weights exactly zero, Re-dense 0.0 %, "
        "Second pruning (SDS) 50.0 %."
    )
    assert rows["kurtosis"].startswith("Dense has tails like a normal distribution (kurtosis 3).")
    assert (
        rows["relative_error"]
        == "Second pruning (SDS) ends with 50.0 % less error than First pruning."
    )
    assert rows["by_size"] == (
        "The zeros of First pruning are exactly the smallest weights of the dense tensor."
    )
    assert rows["cutoff"] == "50.0 % of the dense weights are smaller."
    times = stages[3].stats["max"] / stages[0].stats["max"]
    assert (
        rows["largest"]
        == f"Second pruning (SDS): {number(times, 3)} times that of the dense tensor."
    )


def test_mask_overlap_is_told_as_the_weights_kept_both_times(
    stages: list[TensorSnapshot], made: dict[str, Tensor]
) -> None:
    rows = {row.name: row.sentence for row in explained([stages[1], stages[3]], STAGE_LABELS)}
    first, last = made["first"] != 0, made["sds"] != 0
    both = 100 * (first & last).sum().item() / first.sum().item()
    said = re.search(r"keeps ([\d.]+) % of the weights that the first", rows["mask_overlap"])
    assert said is not None and float(said[1]) == pytest.approx(both, abs=0.051)
    either = mask_overlap(made["sds"], made["first"])
    assert f"an IoU of both masks of {share(either, 2)}." in rows["mask_overlap"]
    rows = {row.name: row.sentence for row in explained(stages[:1], STAGE_LABELS)}
    assert "relative_error" not in rows and "moved" not in rows
    assert rows["zero_share"] == "No weight is exactly zero."
    pruned = replace(stages[1], stage="dense")  # as the statistics of a saved model have it
    rows = {row.name: row.sentence for row in explained([pruned], {"dense": "As stored"})}
    assert rows["zero_share"] == "50.0 % of the weights are exactly zero."


def test_a_rounded_tensor_is_not_called_pruned(dense: Tensor) -> None:
    reference, step = ReferenceTensor(dense), dense.abs().max() / 3
    rounded = {"dense": dense, "rtn": (dense / step).round() * step}
    rounded["dlqat"] = rounded["rtn"] * 0.998
    taken = [
        reference.measure(w, tensor="a.weight", block=0, module="a", stage=stage).snapshot
        for stage, w in rounded.items()
    ]
    rows = {row.name: row.sentence for row in explained(taken, dlqat.STAGE_LABELS)}
    assert not re.search("prun|leaves", " ".join(rows.values()))
    zeros = f"{100 * taken[1].zeros / taken[1].n:.1f} %"
    assert rows["zero_share"] == (
        f"RTN, min-max makes {zeros} of the weights exactly zero, DL-QAT {zeros}."
    )
    assert rows["largest"] == "DL-QAT: 0.998 times that of the dense tensor."
