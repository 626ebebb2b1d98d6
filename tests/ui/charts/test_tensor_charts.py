"""The charts of one tensor, and of many side by side, draw what is stored."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.pruning.config import STAGE_LABELS
from backend.settings import Settings
from backend.statistics.tensors import TensorSnapshot
from backend.store import tensors
from ui.charts.series import (
    Series,
    cut_off_peaks,
    cutoff_note,
    cutoffs,
    on_shared_bins,
    overlay,
    series_note,
)
from ui.static import SCRIPTS
from ui.theme import LIGHT, stage_style, stage_styles

TENSOR = "model.layers.1.mlp.up_proj.weight"
SHOWN = ("dense", "first", "redense", "sds")


@pytest.fixture
def stored(seeded: Settings) -> dict[str, TensorSnapshot]:
    return {s.stage: s for s in tensors.tensor_snapshots(1, TENSOR)}


@pytest.fixture
def series(stored: dict[str, TensorSnapshot]) -> list[Series]:
    return [Series(stored[stage], STAGE_LABELS[stage], stage_style(stage)) for stage in SHOWN]


def lines(figure: go.Figure) -> dict[str, Any]:
    """The traces by the first part of their names."""
    return {trace.name.split(" · ")[0]: trace for trace in figure.data}


# histograms ---------------------------------------------------------------------------------------


def test_bins_zeros_and_the_rest_make_up_all_weights(series: list[Series]) -> None:
    for stage, line in zip(SHOWN, overlay(series).data, strict=True):
        kept = next(s.snapshot for s in series if s.snapshot.stage == stage)
        in_bins = sum(line.y) / 100 * kept.n
        assert in_bins + kept.zeros + kept.below + kept.above == pytest.approx(kept.n)
        assert sum(line.customdata) == pytest.approx(in_bins)
    found = lines(overlay(series))
    assert "50.0\u00a0% exact zeros" in found["First pruning"].name
    middle = len(found["Dense"].y) // 2
    hole = max(found["First pruning"].y[middle - 1 : middle + 1])
    assert hole < min(found["Dense"].y[middle - 1 : middle + 1])


def test_series_share_bins_and_the_log_axis_leaves_out_empty_ones(
    series: list[Series],
) -> None:
    figure = overlay(series, log_y=True)
    assert len({tuple(line.x) for line in figure.data}) == 1
    assert figure.layout.yaxis.type == "log" and "log axis" in figure.layout.yaxis.title.text
    first = lines(figure)["First pruning"]
    assert all((h is None) == (n == 0) for h, n in zip(first.y, first.customdata, strict=True))
    one, two, log = (
        overlay(some, log_y=y).layout
        for some, y in ((series, False), (series[:1], False), (series, True))
    )
    assert one.xaxis.uirevision == two.xaxis.uirevision != log.xaxis.uirevision


def test_cutoffs_are_marked_for_pruned_stages_alone_and_peaks_that_are_cut_off_are_told(
    series: list[Series],
) -> None:
    found = cutoffs(series)
    at = series[1].snapshot.stats["cutoff"]
    assert found[0] == at and f"same sparsity, {at:.3g}." in cutoff_note(series)
    for unchosen in ("redense", "dlqat"):  # zeros that regrowth or rounding left
        left = replace(series[1].snapshot, stage=unchosen)
        assert cutoffs([series[0], replace(series[1], snapshot=left)]) == []
    marked = {shape.x0 for shape in overlay(series).layout.shapes}
    assert {at, -at} <= marked
    assert not overlay(series[:1]).layout.shapes
    tall = series[0].snapshot.counts.copy()
    tall[128] = 40_000
    peaked = replace(
        series[0],
        label="Peaked",
        snapshot=replace(series[0].snapshot, counts=tall, stage="redense", n=int(tall.sum())),
    )
    assert "Cut off at zero; in the tallest bin: Peaked" in cut_off_peaks([series[0], peaked])
    higher = replace(peaked, snapshot=replace(peaked.snapshot, n=2 * peaked.snapshot.n))
    assert re.search(r"Peaked [\d.]+ to [\d.]+ %\.", cut_off_peaks([series[0], peaked, higher]))
    assert cut_off_peaks([series[0]]) == ""


def made(counts: list[int], n: int | None = None, **values: Any) -> Series:
    given_ = {"zeros": 0, "below": 0, "above": 0} | values
    total = sum(counts) + sum(given_.values())
    taken = TensorSnapshot(
        "t",
        0,
        "m",
        "dense",
        n or total,
        lo=-1.0,
        hi=1.0,
        counts=np.array(counts),
        stats={},
        quantiles=(-0.9, 0.9),
        **given_,
    )
    return Series(taken, "Dense", stage_style("dense"))


@given(st.lists(st.integers(0, 500), min_size=256, max_size=256).filter(any))
def test_wider_bins_lose_no_weight_and_keep_zero_on_an_edge(counts: list[int]) -> None:
    (wide,) = on_shared_bins([made(counts)])
    held = wide.snapshot.counts
    assert held.sum() == sum(counts) and len(held) in (64, 128, 256)
    assert held[: len(held) // 2].sum() == sum(counts[:128])


def test_another_runs_bins_are_redrawn_in_ours_and_lose_nothing() -> None:
    ours = made([100] * 256)
    wider = replace(ours.snapshot, lo=-2.0, hi=2.0, counts=np.full(256, 100))
    _, theirs = on_shared_bins([ours, replace(ours, snapshot=wider)])
    now = theirs.snapshot
    assert (now.lo, now.hi) == (-1.0, 1.0)
    assert now.counts.sum() == pytest.approx(12_800), "half of its weights lie within ours"
    assert now.below == now.above == 6400
    said = series_note([made([5] * 64, below=3, above=4)])
    assert "n = 327 weights, 64 bins" in said and "7 lie beyond ±1.00" in said
    assert "beyond" not in series_note([made([5] * 64)])


# looks --------------------------------------------------------------------------------------------


def test_the_browser_knows_the_dark_twin_of_every_gray(series: list[Series]) -> None:
    script = (SCRIPTS / "shade.js").read_text()
    twins = dict(re.findall(r'"(#[0-9A-F]{6})": "--(\w+)"', script))
    assert twins and all(getattr(LIGHT, name) == color for color, name in twins.items())
    colored = {*twins, *(stage_style(stage).color for stage in stage_styles())}
    assert {*re.findall(r'"(#[0-9A-Fa-f]{6})"', overlay(series).to_json())} <= colored
