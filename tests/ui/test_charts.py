"""Figures say what the tables say."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.methods.sds.config import STAGE_LABELS
from backend.settings import Settings
from backend.statistics.tensors import TensorSnapshot
from backend.store import queries
from ui.charts.curves import curves
from ui.charts.heatmap import colour_limits, heatmap_count, in_order, layer_heatmap
from ui.charts.overlay import legible, overlay_count, stage_overlay
from ui.charts.stages import perplexities, perplexity_count, round_ticks, stage_perplexities
from ui.charts.statistics import STATISTICS, available, with_largest
from ui.scripts import ASSETS
from ui.theme import DARK, LIGHT, OKABE_ITO, STAGE_COLOURS

TENSOR = "model.layers.1.mlp.up_proj.weight"
SHOWN = ("dense", "first", "redense", "sds")


@pytest.fixture
def table(seeded: Settings) -> pd.DataFrame:
    return queries.tensor_table(1)


@pytest.fixture
def snapshots(seeded: Settings) -> list[TensorSnapshot]:
    return queries.tensor_snapshots(1, TENSOR)


def drawn(figure: go.Figure) -> list[Any]:
    return list(figure.data)


# heatmap ------------------------------------------------------------------------------------------


def test_each_cell_is_the_stored_figure(table: pd.DataFrame) -> None:
    heat = drawn(layer_heatmap(table, "redense", "near_zero"))[0]
    stored = table[table["stage"] == "redense"].set_index("tensor")["near_zero"]
    assert np.shape(heat.z) == (7, 3)
    for names, values in zip(heat.customdata, heat.z, strict=True):
        for name, value in zip(names, values, strict=True):
            assert value == pytest.approx(100 * stored[name])


def test_modules_stand_in_the_order_of_the_data(table: pd.DataFrame) -> None:
    heat = drawn(layer_heatmap(table, "dense", "std"))[0]
    assert list(heat.x) == ["0", "1", "2"]
    assert list(heat.y) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert in_order(["mlp.odd", "mlp.c_fc", "attn.q_proj"])[0] == "attn.q_proj"


def test_hover_names_tensor_value_unit_and_n(table: pd.DataFrame) -> None:
    heat = drawn(layer_heatmap(table, "first", "zero_share"))[0]
    said = heat.text[5][1]
    assert TENSOR in said and "50.00 %" in said and "n = 12,288 weights" in said


def test_the_chosen_cell_is_told_to_the_browser(table: pd.DataFrame) -> None:
    meta = layer_heatmap(table, "sds", "std", TENSOR).layout.meta
    assert meta == {"pick": "cell", "picked": ["1", "up_proj"]}
    assert "picked" not in layer_heatmap(table, "sds", "std", "no such").layout.meta


def test_missing_layers_are_holes_that_are_counted(table: pd.DataFrame) -> None:
    table.loc[table["tensor"] == TENSOR, "std"] = np.nan
    heat = drawn(layer_heatmap(table, "sds", "std"))[0]
    assert heat.z[5][1] is None
    assert "1 without a value" in heatmap_count(table, "sds", "std")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_colour_limits_are_robust_and_never_empty(values: list[float]) -> None:
    low, high = colour_limits(np.array(values))
    assert low < high
    inside = np.mean([low <= v <= high for v in values])
    assert inside >= 0.94 or len(values) < 50


def test_all_statistics_are_offered_and_drawn(table: pd.DataFrame) -> None:
    assert available(table) == list(STATISTICS)
    for name in STATISTICS:
        heat = drawn(layer_heatmap(table, "sds", name))[0]
        assert heat.colorbar.title.text == STATISTICS[name].title
        assert np.isfinite(np.array(heat.z, dtype=float)).all()


def test_largest_is_the_larger_magnitude(table: pd.DataFrame) -> None:
    found = with_largest(table)["largest"]
    assert (found == np.maximum(table["min"].abs(), table["max"].abs())).all()


# overlay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", SHOWN)
def test_bins_zeros_and_the_rest_make_up_all_weights(
    snapshots: list[TensorSnapshot], stage: str
) -> None:
    line = drawn(stage_overlay(snapshots, [stage], names=STAGE_LABELS))[0]
    stored = next(s for s in snapshots if s.stage == stage)
    in_bins = sum(line.y) / 100 * stored.n
    assert in_bins + stored.zeros + stored.below + stored.above == pytest.approx(stored.n)
    assert sum(line.customdata) == pytest.approx(in_bins)


def test_exact_zeros_are_told_not_drawn(snapshots: list[TensorSnapshot]) -> None:
    figure = stage_overlay(snapshots, SHOWN, names=STAGE_LABELS)
    first = next(line for line in figure.data if line.name.startswith("First pruning"))
    assert "50.0 % exact zeros" in first.name
    middle = len(first.y) // 2
    dense = drawn(figure)[0]
    assert max(first.y[middle - 1 : middle + 1]) < min(dense.y[middle - 1 : middle + 1])


def test_at_most_four_stages_on_shared_bins(snapshots: list[TensorSnapshot]) -> None:
    figure = stage_overlay(snapshots, list(STAGE_LABELS), names=STAGE_LABELS)
    assert len(figure.data) == 4
    assert len({tuple(line.x) for line in figure.data}) == 1


def test_a_log_axis_leaves_out_empty_bins_and_says_so(snapshots: list[TensorSnapshot]) -> None:
    figure = stage_overlay(snapshots, ["first"], names=STAGE_LABELS, log_y=True)
    line = drawn(figure)[0]
    assert figure.layout.yaxis.type == "log" and "log axis" in figure.layout.yaxis.title.text
    assert all((h is None) == (n == 0) for h, n in zip(line.y, line.customdata, strict=True))


def test_zoom_is_kept_for_a_tensor_and_a_scale(snapshots: list[TensorSnapshot]) -> None:
    one, two, log = (
        stage_overlay(snapshots, stages, names=STAGE_LABELS, log_y=y).layout
        for stages, y in ((SHOWN, False), (["dense"], False), (SHOWN, True))
    )
    assert one.xaxis.uirevision == two.xaxis.uirevision != log.xaxis.uirevision


def made(counts: list[int], n: int | None = None, **values: Any) -> TensorSnapshot:
    given_ = {"zeros": 0, "below": 0, "above": 0} | values
    total = sum(counts) + sum(given_.values())
    return TensorSnapshot(
        "t", 0, "m", "dense", n or total, lo=-1.0, hi=1.0, counts=np.array(counts), stats={},
        quantiles=(-0.9, 0.9), **given_,
    )  # fmt: skip


@given(st.lists(st.integers(0, 500), min_size=256, max_size=256))
def test_wider_bins_lose_no_weight_and_keep_zero_on_an_edge(counts: list[int]) -> None:
    wide = legible(made(counts)).counts
    assert wide.sum() == sum(counts) and len(wide) in (64, 128, 256)
    assert wide[: len(wide) // 2].sum() == sum(counts[:128])


def test_what_lies_beyond_the_bins_is_told() -> None:
    said = overlay_count([made([5] * 64, below=3, above=4)], STAGE_LABELS, log_y=True)
    assert "n = 327 weights" in said and "Below −1.00 and above 1.00: Dense 3 and 4." in said
    assert "Below" not in overlay_count([made([5] * 64)], STAGE_LABELS, log_y=True)


# perplexities and curves --------------------------------------------------------------------------


def test_perplexities_in_the_order_of_the_stages(seeded: Settings) -> None:
    results = queries.results([1])
    figure = stage_perplexities(results, STAGE_LABELS)
    dots = drawn(figure)[0]
    assert [r.stage for r in perplexities(results, STAGE_LABELS)] == list(STAGE_LABELS)
    assert list(dots.x) == [4.9, 8.2, 6.1, 5.6, 7.0, 5.9]
    assert [t.strip() for t in dots.text][:2] == ["4.900", "8.200"]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.shapes[0].x0 == 4.9 and figure.layout.shapes[0].line.dash == "dash"
    assert perplexity_count(results) == "n = 4,080 tokens, text toystories, context 256 tokens."


def test_no_perplexity_is_no_error() -> None:
    assert len(drawn(stage_perplexities([], STAGE_LABELS))[0].x) == 0
    assert perplexity_count([]) == ""


def test_curves_have_the_colour_of_their_stage(seeded: Settings) -> None:
    points = queries.curves(2)
    names = ["error/first", "error/redense", "error/sds"]
    figure = curves(points, names, labels=STAGE_LABELS, x_title="Block", y_title="Error")
    for line, name in zip(figure.data, names, strict=True):
        assert list(line.y) == list(points[points["name"] == name]["value"])
        assert line.line.color == STAGE_COLOURS[name.split("/")[1]].colour
        assert line.name == STAGE_LABELS[name.split("/")[1]]


def test_a_curve_of_no_stage_gets_a_colour_of_its_own() -> None:
    points = pd.DataFrame({"name": ["loss"] * 2, "step": [0, 1], "value": [2.0, 1.0]})
    figure = curves(points, ["loss"], log_y=True)
    assert figure.data[0].line.color == OKABE_ITO[0]
    assert figure.layout.yaxis.type == "log"


# looks --------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_can_be_read_and_controls_seen(palette: Any) -> None:
    for ground in (palette.paper, palette.panel):
        for text in (palette.text, palette.muted, palette.accent):
            assert contrast(text, ground) >= 4.5
        assert contrast(palette.edge, ground) >= 2.9
    assert contrast("#FFFFFF", palette.button) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_stages_stand_out_from_the_paper(palette: Any) -> None:
    for stage, stroke in STAGE_COLOURS.items():
        colour = palette.muted if stage == "dense" else stroke.colour
        assert contrast(colour, palette.paper) >= 3


def test_the_browser_knows_the_dark_twin_of_every_grey(snapshots: list[TensorSnapshot]) -> None:
    figure = stage_overlay(snapshots, SHOWN, names=STAGE_LABELS)
    script = (ASSETS / "slimscope.js").read_text()
    twins = dict(re.findall(r'"(#[0-9A-F]{6})": "--(\w+)"', script))
    assert twins and all(getattr(LIGHT, name) == colour for colour, name in twins.items())
    coloured = {*twins, *(stroke.colour for stroke in STAGE_COLOURS.values())}
    assert {*re.findall(r'"(#[0-9A-Fa-f]{6})"', figure.to_json())} <= coloured


@given(st.floats(0.01, 1e5), st.floats(1.02, 1e4))
def test_a_log_axis_has_few_round_ticks(low: float, factor: float) -> None:
    ticks = round_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)
