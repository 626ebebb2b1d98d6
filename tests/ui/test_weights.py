"""The Weights page: what each event shows, and one look at it in a browser."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
import pytest
from playwright.sync_api import Browser, expect

from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import writing
from backend.store.tables import Job, Result, TensorRow
from ui import app
from ui.components.weights_choice import Choice, weights_of
from ui.frame import Page
from ui.pages import weights as page

CONTROLS = ("run", "tensor", "stage", "stat", "show", "y")
OUTPUTS = (
    "seen", "notice", "charts", *CONTROLS,
    "heat", "heat_note", "heat_table", "shape", "shape_note", "shape_table", "table",
    "cost", "cost_note", "cost_table",
)  # fmt: skip
TENSOR = "model.layers.2.mlp.up_proj.weight"
PICKED = ("sds-0001", TENSOR, "first", "std", ["dense", "first"], "log")


def shown(values: list[Any]) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(OUTPUTS, values, strict=True)))


def opened(**query: str) -> SimpleNamespace:
    request = gr.Request(query_params=query, headers={}, client={"host": "127.0.0.1", "port": 1})
    return shown(page.opened(request))


def picked(figure: go.Figure) -> list[str]:
    return list(figure.layout.meta["picked"])


def test_without_an_address_the_newest_run_is_shown(seeded: Settings) -> None:
    seen = opened()
    assert seen.run["value"] == "sds-0002"
    assert [value for _, value in seen.run["choices"]] == ["sds-0002", "sds-0001"]
    assert seen.stage["value"] == "first" and seen.show["value"] == ["dense", "first"]
    assert isinstance(seen.heat, go.Figure) and isinstance(seen.shape, go.Figure)
    assert seen.notice["visible"] is False and seen.cost is None


def test_an_address_gives_the_same_view(seeded: Settings) -> None:
    run, tensor, stage, stat, show, y = PICKED
    seen = opened(run=run, tensor=tensor, stage=stage, stat=stat, show=",".join(show), y=y)
    controls = {name: getattr(seen, name).get("value") for name in CONTROLS}
    assert tuple(controls.values()) == PICKED
    assert picked(seen.heat) == ["2", "up_proj"]
    assert seen.heat.data[0].colorbar.title.text == "Std"
    assert [line.name.split(" · ")[0] for line in seen.shape.data] == ["Dense", "First pruning"]
    assert seen.shape.layout.yaxis.type == "log"


@pytest.mark.parametrize("odd", ["no-such", "<img>", "${x}", "dense,first"])
def test_an_odd_address_gives_a_whole_view(seeded: Settings, odd: str) -> None:
    seen = opened(run="sds-0001", tensor=odd, stage=odd, stat=odd, show=odd, y=odd)
    assert seen.tensor["value"] == "model.layers.0.self_attn.q_proj.weight"
    assert seen.stage["value"] == "sds" and seen.stat["value"] == "relative_error"
    assert isinstance(seen.heat, go.Figure)


def test_no_run_at_all_is_told(data_dir: Any) -> None:
    upgrade()
    seen = opened()
    assert page.NO_RUN in seen.notice["value"] and 'href="launch"' in seen.notice["value"]
    assert seen.charts["visible"] is False


@pytest.mark.parametrize("run", ["sds-0005", "sds-0999", "nonsense"])
def test_a_run_without_statistics_is_told(seeded: Settings, run: str) -> None:
    seen = opened(run=run)
    assert f"{run} has stored no weight statistics." in seen.notice["value"]
    assert seen.charts["visible"] is False
    assert len(seen.run["choices"]) == 2


def test_a_statistic_that_a_stage_lacks_is_told(seeded: Settings) -> None:
    with writing() as session:
        for row in queries.tensor_table(1).itertuples():
            if row.stage == "dense":
                stored = session.get(TensorRow, (1, row.tensor, "dense", 0))
                stored.stats = {k: v for k, v in stored.stats.items() if k != "relative_error"}
    values = ("sds-0001", TENSOR, "dense", "relative_error", ["dense"], "linear")
    assert page.recoloured(*values)[0] == "Dense: relative output error is not measured here."


def test_a_picked_cell_changes_the_tensor_but_not_the_map(seeded: Settings) -> None:
    shape, _, _, table = page.redrawn("sds-0001", TENSOR, None, None, None, None)
    assert shape.layout.uirevision == TENSOR
    assert table.count("<tr>") == 7


def test_no_stage_chosen_is_told(seeded: Settings) -> None:
    values = ("sds-0001", TENSOR, "sds", "std", [], "linear")
    assert page.redrawn(*values)[0] == page.NONE_CHOSEN
    assert page.redrawn("sds-0002", TENSOR, None, None, ["sds"], None)[0] != page.NONE_CHOSEN


def test_back_and_next_walk_through_a_block_and_stop_at_the_ends(seeded: Settings) -> None:
    names = list(weights_of("sds-0001").tensors)
    values = ["sds-0001", names[0], None, None, None, None]
    walked = []
    for _ in names:
        walked.append(values[1])
        values[1] = page.moved_on(*values)[0]
    assert walked == names and values[1] == names[-1]
    assert page.moved_back(*values)[0] == names[-2]
    assert page.moved_back("sds-0001", names[0], *values[2:])[0] == names[0]
    assert [n.split(".")[-2] for n in names[:4]] == ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_a_refresh_does_nothing_until_the_run_has_moved(seeded: Settings) -> None:
    values = ("sds-0002", *opened_values("sds-0002"))
    seen = page.opened(gr.Request(query_params={"run": "sds-0002"}))[0]
    assert page.refreshed(seen, *values) == gr.skip()
    with writing() as session:
        session.get_one(Job, 2).done = 0.9
        session.add(Result(job_id=1, stage="run", metric="work", value=1.0))
    assert page.refreshed(seen, *values) == gr.skip(), "progress, and another run's figure"
    with writing() as session:
        session.add(Result(job_id=2, stage="dense", metric="perplexity", value=4.9))
    after = shown(page.refreshed(seen, *values))
    assert isinstance(after.heat, go.Figure) and list(after.cost.data[0].x) == [4.9]
    for name in CONTROLS:
        assert "value" not in getattr(after, name), "taken out of a person's hand"


def test_a_stage_the_run_has_reached_joins_the_histogram(seeded: Settings) -> None:
    values = ("sds-0001", None, None, None, ["dense", "first"], None)
    seen = {"mark": None, "stages": ["dense", "first", "control"]}
    after = shown(page.refreshed(seen, *values))
    assert after.show["value"] == ["dense", "first", "redense", "sds"]


def opened_values(run: str) -> list[Any]:
    seen = opened(run=run)
    return [getattr(seen, name)["value"] for name in CONTROLS[1:]]


def test_the_table_says_what_is_stored(seeded: Settings) -> None:
    table = page.redrawn(*PICKED)[-1]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    heads = re.findall(r"<th[^>]*>(.*?)</th>", rows[0])
    stored = {s.stage: s for s in queries.tensor_snapshots(1, TENSOR)}
    assert len(rows) == 7
    cells = dict(zip(heads[1:], re.findall(r"<td[^>]*>(.*?)</td>", rows[2]), strict=True))
    assert "First pruning" in rows[2]
    assert cells["Zeros"] == f"{stored['first'].zeros:,}"
    assert cells["Exact zeros, %"] == "50.00"
    exact = float(re.findall(r'data-value="([^"]+)"', rows[2])[heads.index("Kurtosis") - 1])
    assert exact == stored["first"].stats["kurtosis"]


def test_all_statistics_can_be_saved(seeded: Settings) -> None:
    file = page.all_statistics("sds-0001")
    read = pd.read_csv(io.BytesIO(b64decode(file["data"])))
    assert file["name"] == "sds-0001-statistics.csv"
    assert len(read) == 126 and {"tensor", "stage", "zeros", "kurtosis"} <= {*read.columns}
    assert page.all_statistics("sds-0005") == gr.skip()


def test_a_choice_never_shows_more_than_four_stages(seeded: Settings) -> None:
    weights = weights_of("sds-0001")
    assert weights.stages == ["dense", "first", "control", "redense", "second", "sds"]
    assert Choice(show=tuple(weights.stages)).settled(weights).show == tuple(weights.stages[:4])
    assert Choice().settled(weights).show == ("dense", "first", "redense", "sds")


def test_only_runs_with_statistics_are_offered(seeded: Settings) -> None:
    assert [job.run for job in queries.runs_with_weights()] == ["sds-0002", "sds-0001"]


# in a browser -------------------------------------------------------------------------------------


@pytest.fixture
def address(seeded: Settings) -> Iterator[str]:
    blocks = app.build((Page("Weights", "", page.build),))
    options = app.launch_options() | {"server_name": "127.0.0.1", "prevent_thread_lock": True}
    _, url, _ = blocks.launch(**options)
    yield url
    blocks.close()


@pytest.mark.browser
def test_click_arrow_keys_and_address_agree(address: str, browser: Browser) -> None:
    tab = browser.new_page(viewport={"width": 1600, "height": 1000})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{address}?run=sds-0001")
    tab.wait_for_selector("#weights-overlay .legendtext")
    field = tab.locator("#weights-tensor input")
    box = tab.locator("#weights-heatmap .nsewdrag").first.bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    expect(field).to_have_value("Block 1, o_proj")
    tab.focus("#weights-heatmap .plot-canvas")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    expect(field).to_have_value("Block 2, gate_proj")
    tab.wait_for_url("**tensor=model.layers.2.mlp.gate_proj.weight**")
    assert tab.locator("svg.main-svg[role=img]").count() == 3
    assert tab.title() == "Weights · Slimscope"
    assert tab.evaluate("document.body.dataset.x") is None, "a run's name was executed"
    tab.click("#frame-theme")
    paper = "document.querySelector('#weights-overlay .plot-canvas').layout.paper_bgcolor"
    tab.wait_for_function(f"{paper} === '#0F1216'")
    assert not errors
    tab.close()
