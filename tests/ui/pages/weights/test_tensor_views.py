"""The Weights page: the views of one tensor."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from markupsafe import escape
from safetensors.torch import save_file
from sqlalchemy import update

from backend.models.loading import load
from backend.pruning.config import STAGE_LABELS
from backend.settings import Settings
from backend.statistics.names import INPUT_ENERGY, MAGNITUDES
from backend.store import tensors
from backend.store.session import writing
from backend.store.tables import Job, ProfileRow, TensorRow
from tests.ui.pages.weights.views import MAIN, TENSOR, given, opened, settled, view
from ui.pages.weights import data
from ui.pages.weights import handlers as page
from ui.pages.weights.layer_charts import NO_INPUTS, layers_chart
from ui.pages.weights.selection import TENSOR_VIEWS, TOPICS
from ui.pages.weights.tensor.charts import (
    NO_BASE,
    NONE_CHOSEN,
    NOT_SAVED,
    ONE_STAGE,
    QUESTIONS,
    tensor_chart,
)
from ui.pages.weights.theory import OF_TENSOR
from ui.runs.weights import weights_of

# one tensor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", TENSOR_VIEWS)
def test_each_view_of_one_tensor_has_its_question_and_data(seeded: Settings, view: str) -> None:
    seen = page.change_tensor(settled("sds-0001", view=view, topic=""))
    assert isinstance(seen["tensor_chart"], go.Figure), seen["tensor_chart"]
    assert seen["tensor_title"] != "<h2>One tensor</h2>", "a sentence computed from the data"
    assert escape(OF_TENSOR[view]) in seen["tensor_note"]
    assert escape(QUESTIONS[view]) in seen["tensor_note"] and "n = " in seen["tensor_note"]
    assert seen["tensor_table"].count("<tr>") > 10
    exact = re.findall(r'data-value="([^"]+)"', seen["tensor_table"])
    assert exact and all(math.isfinite(float(value)) for value in exact)
    name = seen["tensor_chart"].layout.meta["name"]
    assert name == f"sds-0001-model.layers.0.self_attn.q_proj.weight-{view}"


@pytest.mark.parametrize(
    "view", ["overlay", "mirror", "magnitude", "cumulative", "difference", "channels", "spectrum"]
)
def test_two_runs_can_be_laid_over_each_other(seeded: Settings, view: str) -> None:
    seen = page.change_tensor(given(vs="sds-0002", view=view, show=["dense", "first"]))
    names = " ".join(trace.name or "" for trace in seen["tensor_chart"].data)
    assert "sds-0001" in names and "sds-0002" in names
    lines = [
        t for t in seen["tensor_chart"].data if t.mode == "lines" and t.showlegend is not False
    ]
    dashes = {trace.line.dash for trace in lines}
    assert len(dashes) == 2 or view == "difference"


@pytest.mark.parametrize("shown", ["matrix", "joint"])
def test_two_runs_stand_beside_each_other(seeded: Settings, shown: str) -> None:
    chart = tensor_chart(view(vs="sds-0002", view=shown, show=["dense", "first"]))
    assert isinstance(chart.figure, go.Figure) and chart.frame is not None
    panels = 3 if shown == "matrix" else 2  # the dense tensor is the same
    assert len(chart.figure.data) == panels
    assert {trace.coloraxis for trace in chart.figure.data} == {"coloraxis"}
    matching = {each.matches for each in chart.figure.select_xaxes()} - {None}
    assert len(matching) == 1, "zoomed together"
    runs = " ".join(a.text for a in chart.figure.layout.annotations)
    runs += " ".join(axis.title.text or "" for axis in chart.figure.select_xaxes())
    assert "sds-0001" in runs and "sds-0002" in runs


def test_depth_ridges_and_tree_show_every_block_and_can_be_picked(seeded: Settings) -> None:
    alone = layers_chart(view(layers="depth", stage="first"))
    other = layers_chart(view(layers="depth", stage="first", vs="sds-0002"))
    names = [[t.name for t in c.figure.data if t.line.dash == "dash"] for c in (alone, other)]
    assert names == [["Dense, middle 90 %"] * 2, ["sds-0002, middle 90 %"] * 2]
    chart = layers_chart(view(layers="ridges", stage="dense"))
    assert isinstance(chart.figure, go.Figure)
    ridges = [trace for trace in chart.figure.data if trace.fill]
    assert [min(trace.y) for trace in ridges] == pytest.approx([0, -1, -2], abs=0.2)
    assert [trace.customdata[0] for trace in ridges] == [
        TENSOR.replace(".2.", f".{n}.") for n in range(3)
    ]
    assert ridges[2].line.width > ridges[0].line.width
    assert chart.headline.startswith("Spread of up_proj")
    chart = layers_chart(view(layers="tree", stage="sds", stat="zero_share"))
    assert isinstance(chart.figure, go.Figure) and chart.headline
    tree = chart.figure.data[0]
    nodes = dict(zip(tree.ids, tree.values, strict=True))
    parts = ["Block 2/Attention", "Block 2/MLP"]
    assert nodes["Block 2"] == sum(nodes[part] for part in parts)
    leaf = [*tree.ids].index("Block 2/MLP/up_proj")
    assert tree.customdata[leaf] == TENSOR and tree.parents[leaf] == "Block 2/MLP"
    stored = next(s for s in tensors.tensor_snapshots(1, TENSOR) if s.stage == "sds")
    assert tree.marker.colors[leaf] == pytest.approx(100 * stored.zeros / stored.n)


@pytest.mark.parametrize(
    ("asked_", "topic", "shown", "views"),
    [
        ({}, "distribution", "overlay", 6),
        ({"view": "joint"}, "matrix", "joint", 2),
        ({"view": "joint", "topic": "matrix"}, "matrix", "joint", 2),
        ({"view": "joint", "topic": "spectrum"}, "spectrum", "spectrum", 1),
        ({"view": "mirror", "topic": "nonsense"}, "distribution", "mirror", 6),
    ],
)
def test_a_view_belongs_to_a_topic(
    seeded: Settings, asked_: dict[str, str], topic: str, shown: str, views: int
) -> None:
    seen = opened(run="sds-0001", **asked_)
    assert (seen["topic"]["value"], seen["view"]["value"]) == (topic, shown)
    assert len(seen["view"]["choices"]) == views and seen["view"]["visible"] == (views > 1)


def test_another_topic_offers_its_views(seeded: Settings) -> None:
    seen = page.change_topic(settled("sds-0001", topic="matrix", view="mirror"))
    assert seen["view"]["value"] == "matrix"
    assert [name for _, name in seen["view"]["choices"]] == ["matrix", "joint"]
    assert seen["cells"]["visible"] is True and isinstance(seen["tensor_chart"], go.Figure)
    assert sorted(name for views in TOPICS.values() for name in views) == sorted(TENSOR_VIEWS)


@pytest.mark.parametrize("flow", ["inputs", "weights", "product"])
def test_inputs_of_layers_are_shown_beside_their_weights(seeded: Settings, flow: str) -> None:
    chart = layers_chart(view(layers="inputs", flow=flow, stage="dense"))
    assert isinstance(chart.figure, go.Figure) and chart.frame is not None
    assert chart.frame.shape == (3, 65)
    if flow == "inputs":
        found = chart.frame["Channel 7"].tolist()
        assert found == pytest.approx([20 * (1 + n) ** 0.5 for n in range(3)], rel=1e-3)
    if flow != "weights":
        assert chart.headline.startswith("Channel 7 stands out in block")


def test_runs_that_recorded_no_inputs_or_profiles_say_so(seeded: Settings) -> None:
    with writing() as session:
        for row in session.query(ProfileRow).filter_by(name=INPUT_ENERGY):
            session.delete(row)
    assert layers_chart(view(layers="inputs")).figure == NO_INPUTS
    with writing() as session:
        for row in session.query(ProfileRow).filter_by(job_id=1):
            session.delete(row)
    for name, what in (
        ("magnitude", MAGNITUDES), ("channels", "channels"), ("matrix", "maps"),
        ("joint", "joint histogram"), ("spectrum", "spectrum"),
    ):  # fmt: skip
        seen = page.change_tensor(given(view=name))
        assert seen["tensor_chart"].startswith(f"This run has stored no {what} of this tensor")


def test_the_matrix_is_shown_at_every_stage_on_the_same_colours(seeded: Settings) -> None:
    chart = tensor_chart(view(view="matrix", cells="zeros"))
    assert isinstance(chart.figure, go.Figure) and chart.frame is not None
    shown = {trace.name: trace for trace in chart.figure.data}
    assert list(shown) == [STAGE_LABELS[stage] for stage in MAIN]
    first = np.array(shown[STAGE_LABELS["first"]].z, float)
    stored = next(s for s in tensors.tensor_snapshots(1, TENSOR) if s.stage == "first")
    assert first.shape == (64, 64)
    assert first.mean() == pytest.approx(100 * stored.zeros / stored.n, abs=1)
    assert chart.frame.shape == (4 * 64, 2 + 64)
    rows = chart.frame[chart.frame["Stage"] == STAGE_LABELS["first"]]
    assert np.allclose(rows.iloc[:, 2:].to_numpy(float), first, atol=0.1)
    turned = tensor_chart(view(view="matrix", cells="zeros", look="surface"))
    assert isinstance(turned.figure, go.Figure)
    surface = turned.figure.data[0]
    assert surface.name == STAGE_LABELS["sds"]
    assert np.allclose(surface.z, np.array(shown[STAGE_LABELS["sds"]].z, float), atol=1e-2)
    changed = tensor_chart(view(view="matrix", cells="change"))
    assert isinstance(changed.figure, go.Figure)
    assert len(changed.figure.data) == len(MAIN) - 1  # dense has not changed
    limits = changed.figure.layout.coloraxis
    assert limits.cmin == -limits.cmax


def test_a_quantized_tensor_leads_to_its_groups(seeded: Settings) -> None:
    assert "quantization?" not in page.choose_tensor(view())["statistics"]
    with writing() as session:
        row = session.query(ProfileRow).filter_by(job_id=1, tensor=TENSOR).first()
        key = {"tensor": TENSOR, "stage": "sds", "step": 0, "name": "codes"}
        more = {"block": row.block, "module": row.module, "shape": row.shape, "values": row.values}
        session.add(ProfileRow(job_id=1, **key, **more))
    address = f'href="quantization?run=sds-0001&amp;tensor={TENSOR}"'
    assert address in page.choose_tensor(view())["statistics"]


def test_a_chosen_cell_shows_the_single_weights_around_it(
    seeded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = load("toy").model.get_parameter(TENSOR)
    save_file({TENSOR: weight.detach().bfloat16()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(data, "saved_folders", lambda job: {"dense": tmp_path})
    seen = page.zoom(view(view="matrix", spot="60,5"))
    figure = seen["tensor_chart"]
    assert np.array(figure.data[0].z).shape == (48, 48)
    shown = len(figure.data[0].y), int(figure.data[0].y[0])
    assert shown[0] == 48 and shown[1] in (16, 36)  # in the middle, where there is room
    assert figure.data[0].z[0][0] == pytest.approx(weight[shown[1], 0].item(), rel=0.01)
    assert f"outputs {shown[1]} to {shown[1] + 47}, inputs 0 to 47" in seen["tensor_note"]
    assert ("Around output 60, input 5", "60,5") in seen["spot"]["choices"]
    assert page.zoom(view(view="joint", spot="60,5")) == {"spot": ""}
    beyond = page.change_tensor(given(view="matrix", spot="9999,0"))
    assert beyond["tensor_chart"] == NOT_SAVED
    assert view(spot="../x").selection.spot == ""


def test_before_and_after_counts_every_weight(seeded: Settings) -> None:
    chart = tensor_chart(view(view="joint"))
    stored = {s.stage: s for s in tensors.tensor_snapshots(1, TENSOR)}
    assert chart.frame is not None and isinstance(chart.figure, go.Figure)
    assert chart.frame["Weights"].sum() == stored["sds"].n
    assert list(chart.frame.columns)[1] == f"{STAGE_LABELS['sds']} from"
    assert "moves the weights by" in chart.headline and "exactly zero" in chart.headline
    chart = tensor_chart(view(view="spectrum"))
    stored = {s.stage: s.stats for s in tensors.tensor_snapshots(1, TENSOR)}
    assert isinstance(chart.figure, go.Figure) and "stable rank" in chart.headline
    lines = [trace for trace in chart.figure.data if trace.showlegend is not False]
    fits = [trace for trace in chart.figure.data if trace.showlegend is False]
    assert len(lines) == len(fits) == len(MAIN)
    ranks, values = np.array(fits[0].x), np.array(fits[0].y)
    slope = np.log(ranks[0] / ranks[1]) / np.log(values[1] / values[0])
    assert slope == pytest.approx(2 * (stored["dense"]["alpha"] - 1), rel=1e-3)
    assert ranks[0] == pytest.approx(sum(np.array(lines[0].y) >= values[0]), abs=1)


def test_two_runs_are_compared_at_fewer_stages_unless_others_were_chosen(seeded: Settings) -> None:
    seen = page.change_run(settled("sds-0001", vs="sds-0002"))
    assert seen["show"]["value"] == ["dense", "sds"]
    back = page.change_run(settled("sds-0001", show=["dense", "sds"]))
    assert back["show"]["value"] == ["dense", "first", "redense", "sds"]
    mine = page.change_run(settled("sds-0001", vs="sds-0002", show=["first"]))
    assert "value" not in mine["show"]
    seen = page.change_tensor(given(vs="sds-0002", show=["first", "redense"]))
    assert "sds-0002 has not stored: Re-dense." in seen["tensor_note"]
    with writing() as session:
        session.get_one(Job, 2).config = {"model": "another"}
    weights_of.clear()
    seen = page.change_tensor(given(vs="sds-0002", show=["first"]))
    assert "sds-0002 has another model, another." in seen["tensor_note"]


@pytest.fixture
def quantized(seeded: Settings) -> None:
    """The second run is one of another method, and kept a stage that this one does not have."""
    with writing() as session:
        job = session.get_one(Job, 2)
        job.kind, job.state, job.kept_stage = "dlqat", "succeeded", "dlqat"
        for table in (TensorRow, ProfileRow):
            rows = table.job_id == 2, table.stage == "first"
            session.execute(update(table).where(*rows).values(stage="dlqat"))
    weights_of.clear()


@pytest.mark.parametrize("shown", ["overlay", "mirror", "difference", "joint"])
def test_what_one_run_kept_is_compared_with_what_the_other_kept(
    quantized: None, shown: str
) -> None:
    seen = page.change_run(settled("sds-0001", vs="dlqat-0002", view=shown))
    assert seen["show"]["value"] == ["dense", "sds"]
    assert isinstance(seen["tensor_chart"], go.Figure)
    assert "has not stored" not in seen["tensor_note"]
    kept = ["Second pruning (SDS), sds-0001", "DL-QAT, dlqat-0002"]
    assert all(label in seen["tensor_table"] for label in kept)
    drawn = [series.label for series in view(vs="dlqat-0002", show=["dense", "sds"]).series()]
    assert drawn == ["Dense, sds-0001", *kept]


def test_the_map_is_compared_with_what_the_other_run_kept(quantized: None) -> None:
    chart = layers_chart(view(vs="dlqat-0002", stage="sds", stat="std", against="run"))
    assert isinstance(chart.figure, go.Figure)
    pair = "Where do sds-0001, Second pruning (SDS), and dlqat-0002, DL-QAT, differ in std?"
    assert chart.question.startswith(pair)


def test_steps_begin_at_the_stage_in_the_address_and_so_does_the_map(seeded: Settings) -> None:
    seen = opened(run="sds-0001", view="story", at="redense", tensor=TENSOR)
    assert seen["tensor_title"].startswith("<h2>Re-dense: ")
    assert seen["stage"]["value"] == "redense"
    stops = seen["tensor_chart"].layout.meta["scrub"]["stops"]
    assert [stop["title"].split(":")[0] for stop in stops] == [STAGE_LABELS[s] for s in MAIN]
    assert opened(run="sds-0001", view="overlay", at="redense")["stage"]["value"] == "sds"


@pytest.mark.parametrize(
    ("view", "show", "sentence"),
    [
        ("overlay", [], NONE_CHOSEN),
        ("mirror", ["sds"], ONE_STAGE),
        ("difference", ["dense"], NO_BASE),
        ("joint", ["dense"], NO_BASE),
        ("matrix", [], NONE_CHOSEN),
    ],
)
def test_what_is_missing_for_a_view_is_told(
    seeded: Settings, view: str, show: list[str], sentence: str
) -> None:
    assert page.change_tensor(given(view=view, show=show))["tensor_chart"] == sentence


def test_a_picked_cell_changes_the_tensor_but_not_the_map(seeded: Settings) -> None:
    seen = page.pick_tensor(view())
    assert seen["tensor_chart"].layout.uirevision == TENSOR
    assert "layers_chart" not in seen and TENSOR in seen["statistics"]
    assert "layers_chart" in page.pick_tensor(view(layers="depth")), "its mark moves"
    weights = weights_of("sds-0001")
    assert weights is not None
    names = list(weights.tensors)
    at, walked = names[0], []
    for _ in names:
        walked.append(at)
        at = page.choose_tensor(view(tensor=at), by=1)["tensor"]
    assert walked == names and at == names[-1]
    assert page.choose_tensor(view(tensor=at), by=-1)["tensor"] == names[-2]
    assert page.choose_tensor(view(tensor=names[0]), by=-1)["tensor"] == names[0]
    assert [n.split(".")[-2] for n in names[:4]] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    words = page.pick_tensor(view())["statistics"]
    stored = {s.stage: s for s in tensors.tensor_snapshots(1, TENSOR)}
    (row,) = re.findall(r'<tr><th scope="row">Kurtosis</th>(.*?)</tr>', words)
    exact = [float(value) for value in re.findall(r'data-value="([^"]+)"', row)]
    assert exact == [stored[stage].stats["kurtosis"] for stage in STAGE_LABELS if stage in stored]
    (row,) = re.findall(r'<tr><th scope="row">Exact zeros, %</th>(.*?)</tr>', words)
    assert re.findall(r">([^<]+)</td>", row)[:2] == ["0.00", "50.00"]
