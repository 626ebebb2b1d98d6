"""Figures, and the sentences above them, say what the tables say."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.pruning.config import STAGE_LABELS, SDSStage
from backend.settings import Settings
from backend.store import frames, queries
from jobs.benchmark.report import DecoderReport
from ui.charts import headlines
from ui.charts.chart import round_ticks
from ui.charts.heatmap import (
    BITS,
    STATISTICS,
    MapBaseline,
    available,
    cells,
    color_limits,
    heatmap_note,
    in_order,
    layer_map,
    title_of,
    with_largest,
)
from ui.charts.lines import Line, line_chart, log_span, thinned
from ui.pages.run.stages import perplexities, perplexity_chart, perplexity_note
from ui.theme import DARK, LIGHT, stage_style, stage_styles

TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def table(seeded: Settings) -> pd.DataFrame:
    return frames.tensor_table(1)


def drawn(figure: go.Figure) -> list[Any]:
    return list(figure.data)


# heatmap ------------------------------------------------------------------------------------------


def test_each_cell_is_the_stored_figure_in_order_with_its_unit(
    table: pd.DataFrame,
) -> None:
    heat = drawn(layer_map(table, "redense", "near_zero").figure)[0]
    stored = table[table["stage"] == "redense"].set_index("tensor")["near_zero"]
    assert np.shape(heat.z) == (7, 3)
    for name, value in stored.items():
        _, _, block, *_, module, _ = str(name).split(".")
        cell = heat.z[list(heat.y).index(module)][list(heat.x).index(block)]
        assert cell == pytest.approx(100 * value)
    heat = drawn(layer_map(table, "dense", "std").figure)[0]
    assert list(heat.x) == ["0", "1", "2"]
    assert list(heat.y) == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    assert in_order(["mlp.odd", "mlp.c_fc", "attn.q_proj"])[0] == "attn.q_proj"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_color_limits_are_robust_and_never_empty(values: list[float]) -> None:
    low, high = color_limits(np.array(values))
    assert low < high
    inside = np.mean([low <= v <= high for v in values])
    assert inside >= 0.94 or len(values) < 50


def test_all_statistics_are_offered_and_drawn(table: pd.DataFrame) -> None:
    assert available(table) == [name for name in STATISTICS if name != BITS], "of mixed bits alone"
    table = table.assign(**{BITS: range(len(table))})
    assert available(table) == list(STATISTICS)
    for name in STATISTICS:
        heat = drawn(layer_map(table, "sds", name).figure)[0]
        assert heat.colorbar.title.text == STATISTICS[name].title
        assert np.isfinite(np.array(heat.z, dtype=float)).all()
    found = with_largest(table)["largest"]
    assert (found == np.maximum(table["min"].abs(), table["max"].abs())).all()


def test_compared_with_dense_the_colors_diverge_from_white(table: pd.DataFrame) -> None:
    base = MapBaseline(table[table["stage"] == "dense"], "Dense")
    heat = drawn(layer_map(table, "first", "std", base=base).figure)[0]
    stored = table.set_index(["stage", "tensor"])["std"]
    assert heat.z[5][1] == pytest.approx(stored["first", TENSOR] - stored["dense", TENSOR])
    assert heat.zmin == -heat.zmax and heat.colorscale[1] == (0.5, "#FFFFFF")
    assert title_of(STATISTICS["std"], base) == "Std, difference from dense"
    assert "points" in title_of(STATISTICS["zero_share"], base)
    assert heat.colorbar.title.text == "Std, difference from dense"


def test_missing_layers_are_holes_that_are_counted(table: pd.DataFrame) -> None:
    other = table[(table["stage"] == "sds") & (table["tensor"] != TENSOR)]
    rows = cells(table, "sds", "kurtosis", MapBaseline(other, "sds-0002"))
    assert rows.set_index("tensor")["value"].isna()[TENSOR]
    assert (rows["value"].dropna() == 0).all()
    assert heatmap_note(rows, symmetric=True) == "n = 21 layers, 1 without a value."
    table.loc[table["tensor"] == TENSOR, "std"] = np.nan
    heat = drawn(layer_map(table, "sds", "std").figure)[0]
    assert np.isnan(heat.z[5][1])
    assert "1 without a value" in heatmap_note(cells(table, "sds", "std"))


# perplexities and curves --------------------------------------------------------------------------


def test_perplexities_in_the_order_of_the_stages(seeded: Settings) -> None:
    results = queries.results([1])
    figure = perplexity_chart(results, STAGE_LABELS).figure
    dots, printed = drawn(figure)
    left_out = (SDSStage.FIRST_BLOCKS, SDSStage.SDS_BLOCKS)
    made = [stage for stage in STAGE_LABELS if stage not in left_out]
    assert [r.stage for r in perplexities(results, STAGE_LABELS)] == made
    assert list(dots.x) == [4.9, 8.2, 6.1, 5.6, 7.0, 5.9]
    assert [t.strip() for t in printed.text][:2] == ["4.900", "8.200"]
    ends = [x + error for x, error in zip(dots.x, dots.error_x.array, strict=True)]
    assert list(printed.x) == ends  # no line runs through a figure
    assert printed.showlegend is False  # nor is it a line of the CSV
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.shapes[0].x0 == 4.9 and figure.layout.shapes[0].line.dash == "dash"
    assert perplexity_note(results) == "n = 4,080 tokens, text toystories, context 256 tokens."
    assert len(drawn(perplexity_chart([], STAGE_LABELS).figure)[0].x) == 0
    results[0].details["rounded"] = "float16"
    assert perplexity_note(results).endswith("rounded to float16 in all stages, dense included.")
    assert perplexity_note([]) == ""


def test_long_lines_keep_their_peaks() -> None:
    y = np.sin(np.arange(50_000.0))
    y[12_345] = 7.0
    x, drawn_y = thinned(np.arange(50_000), y)
    assert len(x) <= 2000 and drawn_y.max() == 7.0 and (np.diff(x) > 0).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_a_log_span_shows_every_value(values: list[float]) -> None:
    low, high = log_span(values)
    assert 10**low < min(values) and max(values) < 10**high


# looks --------------------------------------------------------------------------------------------


def luminance(color: str) -> float:
    """Relative luminance of "#RRGGBB" or "rgb(r, g, b)", as WCAG defines it."""
    parts = [int(x, 16) / 255 for x in re.findall("[0-9A-Fa-f]{2}", color)]
    if color[0] != "#":
        parts = [float(x) / 255 for x in re.findall(r"[\d.]+", color)[:3]]
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
    for stage, stroke in ((s, stage_style(s)) for s in stage_styles()):
        color = palette.muted if stage == "dense" else stroke.color
        assert contrast(color, palette.paper) >= 3


@given(st.floats(0.01, 1e5), st.floats(1.02, 1e4))
def test_a_log_axis_has_few_round_ticks(low: float, factor: float) -> None:
    ticks = round_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            [("Dense", 20.0), ("Pruned", 120.0), ("SDS", 70.0)],
            "SDS reaches perplexity 70.0; pruned: 120.0",
        ),
        (
            [("Dense", 30.0), ("Pruned", 50.0), ("Pruned, adjusted", 40.0)],
            "Pruned, adjusted reaches perplexity 40.0; pruned: 50.0",
        ),
        ([("Dense", 20.0), ("SDS", 30.0)], "SDS raises perplexity from 20.00 to 30.00"),
        ([("Dense", 20.0), ("Trained", 10.0)], "Trained lowers perplexity from 20.00 to 10.00"),
        ([("Dense", 20.0), ("8 bits", 20.1)], "8 bits keeps the perplexity of 20.00"),
        ([("Dense", 20.0)], ""),
        ([], ""),
    ],
)
def test_stages(values: list[tuple[str, float]], sentence: str) -> None:
    assert headlines.stages_headline(values) == sentence


def test_curves() -> None:
    frame = pd.DataFrame({"Step": [1, 2, 3], "A": [3.0, 2.0, 1.0], "B": [1.0, 1.0, None]})
    assert headlines.curves_headline(frame, "Loss") == "A: loss falls from 3.00 to 1.00"
    assert headlines.curves_headline(frame[["Step", "A"]], "Loss") == "Loss falls from 3.00 to 1.00"
    assert headlines.curves_headline(frame[["Step", "B"]], "Rate") == "Rate stays near 1.00"
    assert (
        headlines.curves_headline(frame, "Loss", "A", "%")
        == "A: loss falls from 3.00 to 1.00\u00a0%"
    )
    named = headlines.curves_headline(frame, "Loss", main="B")
    assert named == "B: loss stays near 1.00"
    assert headlines.curves_headline(frame.iloc[:1], "Loss") == ""
    assert headlines.rivals_headline(frame, "Error", "%", True) == (
        "Error: B 1.000\u00a0%, 50.0 % lower than A 2.000\u00a0%"
    )
    assert headlines.rivals_headline(frame[["Step", "A"]], "Loss") == ""
    frame = pd.DataFrame({"Block": [0, 1, 2], "A": [3.0, 1.0, 2.0], "B": [1.0, None, None]})
    said = headlines.blocks_headline(frame, "Error", main="A")
    assert said == "A: error is largest in block 0, 3.00, and smallest in block 1, 1.00"
    alone = headlines.blocks_headline(frame[["Block", "A"]], "Error")
    assert alone.startswith("Error is largest in block 0")
    assert headlines.blocks_headline(frame[["Block", "B"]], "Error") == ""


def test_a_gain_that_one_repetition_does_not_show_is_none() -> None:
    rows = [("Lookup", 1.2, True), ("Heads", 1.3, False)]
    faster = "Lookup decodes 1.20\u00a0× as fast as plain decoding"
    assert headlines.speed_headline(rows, {}) == faster  # not the one that only seems faster
    assert headlines.speed_headline(rows[1:], {}) == headlines.NO_GAIN
    assert headlines.speed_headline([], {}) == ""
    ranges = {"Both": (1.19, 1.28), "Lookup": (1.2, 1.23)}
    told = headlines.speed_headline([*rows[:1], ("Both", 1.25, True)], ranges)
    assert told.endswith("; lookup 1.20\u00a0×, ranges overlap")
    shown = DecoderReport("lookup", speed_up=1.2, ranges={"speed_up": (0.98, 1.3)})
    assert not shown.faster and not replace(shown, speed_up=1.02, ranges={}).faster
    assert replace(shown, ranges={"speed_up": (1.1, 1.3)}).faster
    even = headlines.break_even_headline([("A", 1.5, 1.2), ("B", 2.0, 2.5)])
    assert even == "A yields 1.50 tokens per step, more than the 1.20 it needs to pay"
    parts = headlines.parts_headline("A", {"Draft": 1.0, "Verify": 3.0})
    assert (
        parts == "Verify takes 75\u00a0% of a step of A" and headlines.parts_headline("A", {}) == ""
    )
    tasks = headlines.tasks_headline("A", {"chat": 1.0, "rewrite": 2.0, "math": 1.3})
    assert tasks == "A: 2.00\u00a0× in rewrite, 1.00\u00a0× in chat"
    assert headlines.tasks_headline("A", {"chat": 1.0}) == ""
    assert headlines.lower("Loss") == "loss" and headlines.lower("KL divergence") == "KL divergence"


def test_cells_and_zeros() -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.7.self_attn.o_proj.weight"]
    frame = pd.DataFrame({"Tensor": names, "Block": ["0", "7"], "Value": [0.5, -2.0]})
    assert headlines.cells_headline(frame, "Std") == "Std is largest in block 7, o_proj: −2.00"
    percent = frame.rename(columns={"Value": "Error, %"})
    assert headlines.cells_headline(percent, "Error").endswith("o_proj: −2.00\u00a0%")
    assert headlines.cells_headline(frame.assign(Value=None), "Std") == ""
    zeros = headlines.zeros_headline([("Dense", 0.0), ("Pruned", 0.5)])
    assert zeros == "Pruned: 50.0\u00a0% of the weights are exactly zero"


@pytest.mark.parametrize(("values", "from_zero"), [((1.0, 1.01), False), ((1.0, 2.0), True)])
def test_an_axis_begins_at_zero_unless_that_flattens_its_lines(
    values: tuple[float, float], from_zero: bool
) -> None:
    points = pd.DataFrame({"step": [0, 1], "value": values})
    lines = [Line("a", points, stage_style("dense"))]
    figure: Any = line_chart(lines, view="", x_title="Step", y_title="Loss")
    assert (figure.layout.yaxis.rangemode == "tozero") == from_zero
