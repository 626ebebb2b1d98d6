"""The charts of one tensor, and of many side by side, draw what is stored."""

from __future__ import annotations

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
from backend.statistics.names import MAGNITUDES
from backend.statistics.tensors import QUANTILES, TensorSnapshot
from backend.store import tensors
from ui.charts.histograms import difference, difference_note, mirror, overlay
from ui.charts.series import Series, cut_off_peaks, cutoffs, on_shared_bins, series_note
from ui.charts.small_multiples import BINS, small_multiples
from ui.pages.weights.depth import quantile_bands
from ui.pages.weights.tensor.channels import (
    Channels,
    channel_lines,
    channels_note,
    envelope,
    find_outliers,
    outliers_note,
)
from ui.pages.weights.tensor.magnitudes import (
    cumulative,
    magnitude_histogram,
    magnitudes_note,
    magnitudes_of,
)
from ui.pages.weights.tensor.stage_steps import stage_steps_figure
from ui.static import SCRIPTS
from ui.theme import LIGHT, stage_style, stage_styles

TENSOR = "model.layers.1.mlp.up_proj.weight"
SHOWN = ("dense", "first", "redense", "sds")


@pytest.fixture
def stored(seeded: Settings) -> dict[str, TensorSnapshot]:
    return {s.stage: s for s in tensors.tensor_snapshots(1, TENSOR)}


@pytest.fixture
def series(stored: dict[str, TensorSnapshot]) -> list[Series]:
    held = {p.stage: p.values for p in tensors.profiles(1, TENSOR, MAGNITUDES)}
    return [
        Series(stored[stage], STAGE_LABELS[stage], stage_style(stage), held[stage])
        for stage in SHOWN
    ]


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
    assert "50.0 % exact zeros" in found["First pruning"].name
    middle = len(found["Dense"].y) // 2
    hole = max(found["First pruning"].y[middle - 1 : middle + 1])
    assert hole < min(found["Dense"].y[middle - 1 : middle + 1])


def test_series_share_their_bins_and_the_log_axis_leaves_out_empty_ones(
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
    assert found[0][0] == at and all("threshold" in label for _, label in found)
    redense = series[2].snapshot
    assert redense.zeros == 0 and "cutoff" not in redense.stats
    marked = {shape.x0 for shape in overlay(series).layout.shapes}
    assert {at, -at} <= marked
    assert not overlay(series[:1]).layout.shapes
    tall = series[0].snapshot.counts.copy()
    tall[128] = 40_000
    peaked = replace(
        series[0], label="Peaked",
        snapshot=replace(series[0].snapshot, counts=tall, stage="redense", n=int(tall.sum())),
    )  # fmt: skip
    assert "Cut off at zero: Peaked" in cut_off_peaks([series[0], peaked])
    higher = replace(peaked, snapshot=replace(peaked.snapshot, n=2 * peaked.snapshot.n))
    assert re.search(r"Peaked [\d.]+ to [\d.]+ %\.", cut_off_peaks([series[0], peaked, higher]))
    assert cut_off_peaks([series[0]]) == ""
    assert "Peaked +" in difference_note([(peaked, series[0])])


def test_a_mirror_shows_the_same_heights_on_both_sides(series: list[Series]) -> None:
    figure = mirror(series[0], series[1])
    up, down = figure.data
    alone = overlay([series[0], series[1]]).data
    assert list(up.y) == list(alone[0].y)
    assert [-h for h in down.y] == pytest.approx(list(alone[1].y))
    low, high = figure.layout.yaxis.range
    assert low == -high
    assert not any("−" in tick for tick in figure.layout.yaxis.ticktext), "no share is negative"
    figure = difference([(series[1], series[0])])
    (gap,) = figure.data
    lost = 100 * (series[0].snapshot.zeros - series[1].snapshot.zeros) / series[0].snapshot.n
    beyond = [s.snapshot.below + s.snapshot.above for s in series[:2]]
    moved = 100 * (beyond[0] - beyond[1]) / series[0].snapshot.n
    assert sum(gap.y) == pytest.approx(lost + moved)
    assert "zeros +50.0 points" in gap.name


def made(counts: list[int], n: int | None = None, **values: Any) -> Series:
    given_ = {"zeros": 0, "below": 0, "above": 0} | values
    total = sum(counts) + sum(given_.values())
    taken = TensorSnapshot(
        "t", 0, "m", "dense", n or total, lo=-1.0, hi=1.0, counts=np.array(counts), stats={},
        quantiles=(-0.9, 0.9), **given_,
    )  # fmt: skip
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
    said = series_note([made([5] * 64, below=3, above=4)], whole=True)
    assert "n = 327 weights, 64 bins" in said and "7 lie beyond ±1.00" in said
    assert "beyond" not in series_note([made([5] * 64)], whole=True)


# magnitudes ---------------------------------------------------------------------------------------


def test_magnitudes_and_zeros_make_up_all_weights(series: list[Series]) -> None:
    for m, line in zip(
        magnitudes_of(series), magnitude_histogram(magnitudes_of(series)).data, strict=True
    ):
        assert m.counts.sum() + m.series.snapshot.zeros == m.series.snapshot.n
        assert sum(line.y) == pytest.approx(
            100 * (1 - m.series.snapshot.zeros / m.series.snapshot.n)
        )
    counts = np.zeros(144)
    counts[[0, 70, 143]] = 500, 11_783, 5
    (m,) = magnitudes_of([replace(series[0], magnitudes=counts)])
    low, high = magnitude_histogram([m]).layout.xaxis.range
    assert 10**low == pytest.approx(m.edges[1]) and 10**high < m.edges[-1]
    assert "Dense 500 and 5." in magnitudes_note([m])
    figure = cumulative(magnitudes_of(series))
    first = lines(figure)["First pruning"]
    assert first.y[0] == pytest.approx(50.0, abs=0.1) and first.y[-1] == pytest.approx(100.0)
    assert list(first.y) == sorted(first.y)
    assert figure.layout.xaxis.type == "log" and "log axis" in figure.layout.xaxis.title.text
    older = replace(series[0], magnitudes=None)
    assert [m.series.label for m in magnitudes_of([older, *series[1:2]])] == ["First pruning"]


# channels -----------------------------------------------------------------------------------------


def channels(values: Any, stage: str = "dense") -> Channels:
    return Channels(stage.capitalize(), stage_style(stage), stage, np.asarray(values, dtype=float))


def test_outliers_lie_beyond_tukeys_outer_fences() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 100, -90])
    low, high = np.percentile(values, [25, 75])
    expected = [
        i
        for i, v in enumerate(values)
        if not low - 3 * (high - low) <= v <= high + 3 * (high - low)
    ]
    assert sorted(find_outliers(values)) == expected == [8, 9]
    assert find_outliers(values)[0] in (8, 9) and not len(find_outliers(np.ones(5)))
    zeros = channels([50.0, 50.0, 50.0, 10.0], stage="first")
    said = outliers_note(np.array([3]), [zeros])
    assert said.startswith("1 outlier (ring): 3.")
    assert "First: 10.0 % of their weights are zero, 50.0 % of the others'." in said
    assert "No channel" in outliers_note(np.array([], dtype=int), [zeros])


def test_channels_are_drawn_by_size_or_by_number_and_outliers_ringed() -> None:
    one = channels([3.0, 9.0, 1.0, 50.0])
    by_size = channel_lines([one], side="row", measure="norm", outliers=[3]).data
    assert list(by_size[0].y) == [50.0, 9.0, 3.0, 1.0] and list(by_size[0].customdata) == [
        3,
        1,
        0,
        2,
    ]
    assert list(by_size[1].x) == [0] and list(by_size[1].y) == [50.0]
    by_number = channel_lines([one], side="row", measure="norm", by_size=False, outliers=[3]).data
    assert list(by_number[0].y) == [3.0, 9.0, 1.0, 50.0] and list(by_number[1].x) == [3]
    drawn = [channels([0.0, 1.0, 2.0])]
    assert "log axis" not in channels_note(drawn)
    assert "Zeros that a log axis leaves out: 1." in channels_note(drawn, log_y=True)
    values = np.random.default_rng(0).normal(size=(8, 16_384)).astype(np.float32) ** 2
    drawn = [channels(each, stage) for each, stage in zip(values, 2 * SHOWN, strict=True)]
    figure = channel_lines(drawn, side="row", measure="norm", by_size=False)
    assert len(figure.to_json()) < 300_000


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500), st.integers(2, 40))
def test_an_envelope_keeps_the_extremes(values: list[float], most: int) -> None:
    kept = envelope(np.array(values), most)
    assert len(kept) <= max(most, len(values) if len(values) <= most else most)
    assert {min(values), max(values)} <= {values[i] for i in kept}
    assert sorted(set(kept)) == list(kept)


# many tensors -------------------------------------------------------------------------------------


def test_bands_are_the_stored_quantiles(seeded: Settings) -> None:
    found = tensors.module_snapshots(1, "mlp.up_proj", ["sds"])
    figure = quantile_bands(
        [s.block for s in found], [s.quantiles for s in found], stage_style("sds"),
        tensors=[s.tensor for s in found], picked=TENSOR,
    )  # fmt: skip
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["Median"].y) == [s.quantiles[QUANTILES.index(0.5)] for s in found]
    assert list(traces["5 % to 95 %"].y) == [s.quantiles[QUANTILES.index(0.95)] for s in found]
    assert list(traces["Median"].customdata) == [s.tensor for s in found]
    assert figure.layout.shapes[0].x0 == 1
    assert figure.layout.xaxis.dtick == 1, "three blocks have three ticks"
    deep = quantile_bands([*range(30)], [found[0].quantiles] * 30, stage_style("sds"))
    assert deep.layout.xaxis.dtick is None and deep.layout.xaxis.nticks == 12


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (7, 3), (12, 4)])
def test_few_panels_fill_the_space_of_many(series: list[Series], count: int, rows: int) -> None:
    figure = small_multiples({f"{n}": (f"Block {n}", series[:1]) for n in range(count)})
    spans = {figure.layout[f"yaxis{n or ''}"].domain for n in (0, *range(2, count + 1))}
    assert len(spans) == rows
    assert min(low for low, _ in spans) == pytest.approx(0)
    assert max(high for _, high in spans) == pytest.approx(1)


def test_small_multiples_have_one_axis_and_lose_no_weight(series: list[Series]) -> None:
    figure = small_multiples(
        {TENSOR: ("Block 1", series[:2]), "b": ("Block 2", series[2:])}, TENSOR
    )
    assert len(figure.data) == 4 and {trace.yaxis for trace in figure.data} == {"y", "y2"}
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range
    assert figure.layout.xaxis2.matches == "x"
    for one, trace in zip(series, figure.data, strict=True):
        assert len(trace.y) == BINS
        assert sum(trace.y) == pytest.approx(sum(one.heights))
    assert "▸ Block 1" in figure.layout.annotations[0].text
    assert {*figure.data[0].customdata} == {TENSOR}
    figure = stage_steps_figure(series, ["a", "b", "c", "d"], at="redense")
    scrub = figure.layout.meta["scrub"]
    assert [stop["name"] for stop in scrub["stops"]] == list(SHOWN) and scrub["at"] == 2
    drawn = on_shared_bins(series)
    for one, stop in zip(drawn, scrub["stops"], strict=True):
        assert stop["y"] == pytest.approx(one.heights.tolist(), abs=1e-5)
    assert list(figure.data[1].y) == pytest.approx(scrub["stops"][2]["y"], abs=1e-5)
    assert (
        stage_steps_figure(series, ["a", "b", "c", "d"], at="nonsense").layout.meta["scrub"]["at"]
        == 0
    )


# looks --------------------------------------------------------------------------------------------


def test_the_browser_knows_the_dark_twin_of_every_grey(series: list[Series]) -> None:
    script = (SCRIPTS / "shade.js").read_text()
    twins = dict(re.findall(r'"(#[0-9A-F]{6})": "--(\w+)"', script))
    assert twins and all(getattr(LIGHT, name) == colour for colour, name in twins.items())
    coloured = {*twins, *(stage_style(stage).colour for stage in stage_styles())}
    for figure in (
        overlay(series), mirror(*series[:2]), difference([(series[1], series[0])]),
        cumulative(magnitudes_of(series)), stage_steps_figure(series, [""] * 4),
        small_multiples({TENSOR: ("Block 1", series)}),
    ):  # fmt: skip
        assert {*re.findall(r'"(#[0-9A-Fa-f]{6})"', figure.to_json())} <= coloured
