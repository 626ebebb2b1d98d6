"""The Weights page: what stories draw of it, older addresses, and models without a run."""

from dataclasses import fields

import numpy as np
import plotly.graph_objects as go
import pytest
from sqlalchemy import update

from backend.settings import Settings
from backend.store import frames
from backend.store.session import writing
from backend.store.tables import Job, TensorRow
from tests.ui.lab import asked
from ui.charts.chart import Chart
from ui.pages.weights.charts import (
    VIEWS,
    WeightsSelection,
    WeightsView,
    main_stages,
    map_chart,
)
from ui.pages.weights.groups import NONE_RECORDED
from ui.pages.weights.page import BELOW, PAGE
from ui.runs.weights import weights_of

TENSOR = "model.layers.2.mlp.up_proj.weight"


def drawn(chart: str, **query: str) -> Chart:
    """What a story shows for an address."""
    return PAGE.charts[f"weights-{chart}"].draw(asked(**{"run": "sds-0001", **query}))


def settled(**query: str) -> WeightsSelection:
    view = WeightsView.at(WeightsSelection.from_address(asked(**query)))
    return view.selection


def test_the_map_of_a_story_shows_all_tensors(seeded: Settings) -> None:
    chart = drawn("heatmap", tensor=TENSOR, stat="std")
    assert isinstance(chart.figure, go.Figure) and chart.frame is not None
    stored = frames.tensor_table(1).query("stage == 'sds'").set_index("tensor")["std"]
    assert dict(zip(chart.frame["Tensor"], chart.frame["Std"], strict=True)) == stored.to_dict()
    assert chart.headline.startswith("Std is largest in block")
    lacks = "Dense is the reference: no relative output error."
    with writing() as session:
        for row in session.query(TensorRow).filter_by(job_id=1, stage="dense"):
            row.stats = {k: v for k, v in row.stats.items() if k != "relative_error"}
    weights_of.clear()
    assert drawn("heatmap", stage="dense", stat="relative_error").figure == lacks
    weights_of.clear()


def test_the_histogram_of_a_story_has_the_lines_and_the_strip_of_the_page(seeded: Settings) -> None:
    chart = drawn("overlay", tensor=TENSOR, y="log")
    assert isinstance(chart.figure, go.Figure) and chart.frame is not None
    *lines, strip = chart.figure.data
    assert [line.name.split(" ·")[0] for line in lines] == [
        "Dense",
        "First pruning",
        "Second pruning (SDS)",
    ]
    assert chart.figure.layout.yaxis.type == "log" and strip.yaxis == "y2"
    after, before = (np.array(line.customdata) for line in (lines[2], lines[1]))
    assert np.allclose(strip.y, 100 * (after - before) / (192 * 64), atol=1e-6)
    assert "n = " in chart.note and chart.theory and chart.question.endswith("?")
    chosen = drawn("overlay", tensor=TENSOR, show="redense", stage="dense").figure.data
    assert [line.name.split(" ·")[0] for line in chosen[:-1]] == ["Re-dense", "Dense"]


@pytest.mark.parametrize("view", [*VIEWS, "<img>"])
def test_a_story_draws_the_view_that_the_page_shows_and_no_other(
    seeded: Settings, view: str
) -> None:
    shown = {
        name: drawn(name, tensor=TENSOR, view=view, cells="change", order="index", step="<b>")
        for name in BELOW
    }
    figures = {name: chart for name, chart in shown.items() if isinstance(chart.figure, go.Figure)}
    if view == "groups":
        assert not figures and shown["groups"].figure == NONE_RECORDED
        return
    (name,) = figures
    assert view in (*BELOW[name], "<img>") and figures[name].headline
    traces = figures[name].figure.data
    values = np.concatenate([np.ravel(t.z if t.type == "heatmap" else t.y) for t in traces])
    assert np.isfinite(np.array(values, float)).any()
    assert isinstance(drawn("more", view="matrix", spot="1,1").figure, str)


def test_two_runs_of_a_story_are_compared_at_what_each_kept(seeded: Settings) -> None:
    with writing() as session:
        job = session.get_one(Job, 2)
        job.kind, job.state, job.kept_stage = "dlqat", "succeeded", "dlqat"
        session.execute(
            update(TensorRow)
            .where(TensorRow.job_id == 2, TensorRow.stage == "first")
            .values(stage="dlqat")
        )
    weights_of.clear()
    chart = drawn("overlay", vs="dlqat-0002", tensor=TENSOR)
    names = [trace.name.split(" ·")[0] for trace in chart.figure.data[:-1]]
    kept = ["DL-QAT, dlqat-0002", "Second pruning (SDS), sds-0001"]
    assert names == ["Dense, sds-0001", *kept]
    assert chart.figure.data[1].line.dash == "dash"
    chart = drawn("heatmap", vs="dlqat-0002", stat="std")
    pair = "Where do sds-0001, Second pruning (SDS), and dlqat-0002, DL-QAT, differ in std?"
    assert chart.question.startswith(pair)
    with writing() as session:
        session.get_one(Job, 2).config = {"model": "another"}
    weights_of.clear()
    assert len(drawn("overlay", vs="dlqat-0002", tensor=TENSOR).figure.data) == 5
    missing = drawn("heatmap", vs="dlqat-0002", stage="redense", stat="std")
    assert missing.figure == "dlqat-0002: std is not measured, so nothing can be compared."
    weights_of.clear()


def test_what_an_address_asks_for_and_is_not_there_is_replaced(seeded: Settings) -> None:
    assert settled(run="sds-0001", view="joint", stage="redense").stage == "redense"
    assert settled().run == "sds-0002", "the newest"
    names = [field.name for field in fields(WeightsSelection)]
    odd = settled(**dict.fromkeys(names, "<img>") | {"run": "sds-0001"})
    assert (odd.stage, odd.stat, odd.vs) == ("sds", "relative_error", "")
    assert odd.show == () and (odd.cells, odd.side) == ("mean", "row")
    assert settled(run="sds-0001", vs="sds-0001").vs == ""
    assert settled(run="sds-0001", vs="control").vs == "control"
    assert settled(run="sds-0001", show="sds,dense,no").show == ("dense", "sds")


def test_the_first_stage_shown_has_the_statistic(seeded: Settings) -> None:
    assert main_stages(["dense", "rtn", "m-only", "lora", "dlqat"]) == ["dense", "rtn", "dlqat"]
    assert main_stages(["dense", "of-a-plugin"]) == ["dense", "of-a-plugin"]
    with writing() as session:
        for row in session.query(TensorRow).filter_by(job_id=1, stage="sds"):
            row.stats = {k: v for k, v in row.stats.items() if k != "relative_error"}
    weights_of.clear()
    opened = settled(run="sds-0001")
    assert (opened.stage, opened.stat) == ("sds", "kurtosis"), "kept, with what it has"
    with writing() as session:
        session.get_one(Job, 1).kept_stage = None
    weights_of.clear()
    opened = settled(run="sds-0001")
    assert (opened.stage, opened.stat) == ("redense", "relative_error"), "while the run goes on"
    view = WeightsView.at(WeightsSelection("sds-0001"))
    assert view is not None and isinstance(map_chart(view).figure, go.Figure)
    weights_of.clear()
