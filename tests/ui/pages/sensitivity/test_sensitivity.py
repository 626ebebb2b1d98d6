"""The Sensitivity page: what each event shows, and what its charts say."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from backend.sensitivity.profile import TOKEN_WISE
from jobs.profile.profiles import CALIBRATION_TOKENS, ESTIMATE, WIDEST_INPUT
from tests.ui.conftest import HOSTILE, Fill
from tests.ui.lab import asked, job, store
from tests.ui.pages.sensitivity.profiles import WORST, profile_rows
from ui.pages.sensitivity import page
from ui.pages.sensitivity.panels import AGREEMENT, CHARTS, CURVE, MAP, NOT_MEASURED
from ui.pages.sensitivity.panels import WORST as FIRST
from ui.pages.sensitivity.selection import SensitivitySelection, SensitivityView


@pytest.fixture(autouse=True)
def lab(filled: Fill) -> None:
    filled(store_runs)


def store_runs() -> None:
    """profile-0001 has ended, profile-0002 has measured one block, profile-0003 none."""
    ended, rows = profile_rows(1, name=HOSTILE)
    works, more = profile_rows(2, blocks=1, state="running")
    store(ended, works, job(3, kind="profile", state="running"), *rows, *more)


def opened(**query: str) -> dict[str, Any]:
    return page.SHARED.open(asked(**query))


def view(**values: str) -> SensitivityView:
    return SensitivityView.at(SensitivitySelection(**({"run": "profile-0001"} | values)))


def chart(panel: Any, **values: str) -> Any:
    return CHARTS[panel](view(**values))


def test_a_profile_opens_in_a_measured_format_at_its_worst_layer() -> None:
    shown = opened(run="profile-0001")
    assert shown["format"]["value"] == "int3-g64" and shown["figure"]["value"] == "predicted"
    assert shown["layer"]["value"] == WORST
    for panel in CHARTS:
        assert isinstance(shown[panel.parts[0]], go.Figure)
    assert "measured in int3-g64 and 50%, else estimated" in shown["head"]
    assert "trade-offs?run=profile-0001" in shown["head"]
    assert "estimated in sample" in shown["head"]
    assert ["Block 0, down_proj", WORST] in shown["layer"]["choices"]


def test_a_profile_says_its_estimate_and_its_tokens() -> None:
    record = {ESTIMATE: TOKEN_WISE, CALIBRATION_TOKENS: 128, WIDEST_INPUT: 384}
    damaged = {ESTIMATE: [1], CALIBRATION_TOKENS: "<b>"}  # of an imported run
    for number, environment in ((4, record), (5, damaged)):
        run, rows = profile_rows(number, environment=environment)
        store(run, *rows)
    head = opened(run="profile-0004")["head"]
    assert "estimated held out, token by token" in head
    assert "128 calibration tokens for 384 inputs (too few)" in head
    head = opened(run="profile-0005")["head"]
    assert "estimated in sample" in head and "calibration tokens" not in head


def test_cells_are_on_a_log_scale_and_the_table_has_all_layers_worst_first() -> None:
    drawn = chart(MAP)
    z = np.array(drawn.figure.data[0].z, float)
    table = view().table
    assert z.max() == pytest.approx(np.log10(table["value"].max()))
    assert drawn.figure.layout.meta["picked"] == ["0", "down_proj"]
    assert drawn.frame["Layer"][0] == WORST and len(drawn.frame) == len(table)
    worst = chart(FIRST)
    assert len(worst.figure.data[0].x) == 15 and len(worst.frame) == len(table)
    assert worst.figure.data[0].customdata[0] == WORST
    assert worst.headline.startswith(f"15 of {len(table)} layers carry ")


def test_a_curve_marks_what_was_measured_over_bits_or_over_sparsity() -> None:
    bits, zeros = chart(CURVE), chart(CURVE, format="50%")
    own, pruned = bits.figure.data[1], zeros.figure.data[1]
    assert [*own.x] == [2.25, 3.25, 4.25] and {*pruned.x} == {50, 70}
    assert [*own.marker.symbol] == ["circle-open", "circle", "circle-open"]
    assert own.y[0] > own.y[1] > own.y[2] and [*own.customdata] == [*bits.frame["Format"]]
    assert own.hoverinfo != "skip"  # else it could not be clicked
    assert bits.figure.layout.shapes[0].x0 == 3.25


def test_a_figure_that_was_not_measured_says_where_it_was() -> None:
    for panel in (MAP, FIRST):
        said = chart(panel, format="int2-g64", figure="kl").figure
        assert said == NOT_MEASURED.format("int3-g64 and 50%")


def test_a_profile_at_work_shows_its_blocks_and_the_next_when_it_is_there() -> None:
    shown = opened(run="profile-0002")
    assert "still measuring" in shown["head"] and "in 1 block," in shown["map_note"]
    selection = view(run="profile-0002").selection
    assert page.SHARED.refresh(shown["seen"], selection) == {}
    _, more = profile_rows(2)
    store(*more[7:14])
    later = page.SHARED.refresh(shown["seen"], selection)
    assert "in 2 blocks" in later["map_note"] and "value" not in later["layer"]


def test_clicks_choose_a_layer_and_a_format() -> None:
    other = view(layer="model.layers.1.self_attn.q_proj", format="70%")
    assert page.choose(other)["layer"] == "model.layers.1.self_attn.q_proj"
    assert page.choose(other)["format"] == "70%"
    assert "Block 1, q_proj at 70\u00a0%" in page.choose(other)["curve_title"]


def test_estimates_are_held_against_measurements_in_a_measured_format() -> None:
    drawn = chart(AGREEMENT, format="int2-g64")
    assert "rank correlation 1.0" in drawn.headline and "3\u00a0bits" in drawn.note
    assert {*drawn.figure.data[0].customdata} == {*view().table["tensor"]}
    assert chart(AGREEMENT, figure="error").figure.layout.xaxis.title.text.startswith("Relative")


def test_the_finding_counts_the_layers_that_cost_as_much() -> None:
    """At 2 bits the worst loses 2 x 0.2 x 40 nats."""
    losses = view(format="int2-g64").table["predicted"].to_numpy()
    others = int((losses[::-1].cumsum() <= losses[0]).sum())
    assert losses[0] == pytest.approx(2 * 0.2 * 40, rel=1e-5) and others == len(losses) - 1
    name = view().tensors[WORST]
    said = (
        f"{name} alone costs 16 nats at 2\u00a0bits, as much as the {others} least sensitive layers"
    )
    assert chart(MAP, format="int2-g64").headline == f"{said} together"
    assert " at 50\u00a0%, " in chart(MAP, format="50%").headline
    assert "loses 5.0 % of its output at 3\u00a0bits" in chart(MAP, figure="error").headline
