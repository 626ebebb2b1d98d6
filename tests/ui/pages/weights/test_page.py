"""The Weights page: what each event shows, and the views of all layers."""

from __future__ import annotations

import io
import re
from base64 import b64decode

import gradio as gr
import pandas as pd
import plotly.graph_objects as go
import pytest
from sqlalchemy import delete

from backend.settings import Settings
from backend.store import frames, queries
from backend.store.session import writing
from backend.store.tables import Artifact, Job, Result, TensorRow
from jobs.weight_statistics.config import NAME
from tests.ui.lab import GUEST, HOST, asked
from tests.ui.pages.weights.views import (
    CONTROLS,
    PICKED,
    TENSOR,
    given,
    opened,
    outlined,
    settled,
    view,
    visible,
)
from ui.pages.weights import handlers as page
from ui.pages.weights import inspect_model
from ui.pages.weights.layer_charts import layers_chart
from ui.pages.weights.selection import LAYER_VIEWS, WeightsSelection, main_stages
from ui.pages.weights.theory import OF_LAYERS
from ui.runs.weights import weights_of

# the address --------------------------------------------------------------------------------------


def test_an_address_gives_the_same_view_and_none_the_newest_run(seeded: Settings) -> None:
    seen = opened()
    assert seen["run"]["value"] == "sds-0002"
    assert [value for _, value in seen["run"]["choices"]] == ["sds-0002", "sds-0001"]
    assert seen["stage"]["value"] == "first" and seen["show"]["value"] == ["dense", "first"]
    assert isinstance(seen["layers_chart"], go.Figure) and isinstance(
        seen["tensor_chart"], go.Figure
    )
    assert seen["notice"]["visible"] is False and seen["perplexity_chart"] == page.NO_PERPLEXITY
    seen = opened(**PICKED)
    for name, value in PICKED.items():
        assert seen[name]["value"] == (value.split(",") if name == "show" else value), name
    assert visible(seen) == {"run", "vs", "tensor", "layers", "stage", "view", "show", "topic"}
    assert "Above: First pruning, sds-0001" in seen["tensor_chart"].data[0].name
    assert seen["layers_chart"].layout.shapes[0].x0 == 2, "the chosen block is marked"


@pytest.mark.parametrize("odd", ["no-such", "<img>", "${x}", "dense,first"])
def test_an_odd_address_gives_a_whole_view(seeded: Settings, odd: str) -> None:
    seen = opened(**dict.fromkeys(CONTROLS, odd) | {"run": "sds-0001"})
    assert seen["tensor"]["value"] == "model.layers.0.self_attn.q_proj.weight"
    assert seen["stage"]["value"] == "sds" and seen["stat"]["value"] == "relative_error"
    assert seen["layers"]["value"] == "map" and seen["view"]["value"] == "overlay"
    assert isinstance(seen["layers_chart"], go.Figure)


def test_no_run_at_all_is_told(tables: Settings) -> None:
    seen = opened()
    assert page.NO_RUN in seen["notice"]["value"] and 'href="new"' in seen["notice"]["value"]
    assert seen["charts"]["visible"] is False


@pytest.mark.parametrize(
    ("run", "told", "offered"),
    [
        ("sds-0005", "sds-0005 has stored no weight statistics.", 3),
        ("sds-0999", "There is no run sds-0999. Choose one above.", 2),
        ("nonsense", "There is no run nonsense.", 2),
    ],
)
def test_a_run_without_statistics_is_told(
    seeded: Settings, run: str, told: str, offered: int
) -> None:
    seen = opened(run=run)
    assert told in seen["notice"]["value"]
    assert seen["charts"]["visible"] is False
    assert len(seen["run"]["choices"]) == offered


def test_a_run_without_statistics_yet_and_one_that_is_deleted_or_purged_are_told(
    seeded: Settings,
) -> None:
    assert "yet. They appear here block by block." in opened(run="sds-0003")["notice"]["value"]
    with writing() as session:
        session.get_one(Job, 1).removed_at = 1
    seen = opened(run="sds-0001")
    first = seen["run"]["choices"][0]
    assert first[1] == seen["run"]["value"] == "sds-0001" and "(deleted)" in first[0]
    assert seen["charts"]["visible"] is True
    with writing() as session:
        session.get_one(Job, 1).purged = True
        session.execute(delete(TensorRow).where(TensorRow.job_id == 1))
    seen = opened(run="sds-0001")
    assert "sds-0001 was deleted, and its figures with it." in seen["notice"]["value"]
    assert seen["run"]["value"] == "sds-0001"


# all layers ---------------------------------------------------------------------------------------


def test_the_map_outlines_the_chosen_tensor(seeded: Settings) -> None:
    seen = opened(run="sds-0001", tensor=TENSOR, stat="std")
    assert outlined(seen["layers_chart"]) == ["2", "up_proj"]
    assert seen["layers_chart"].data[0].colorbar.title.text == "Std"
    blocks = page.change_layers(view(layers="shapes"))["layers_chart"]
    assert [a.text for a in blocks.layout.annotations] == ["Block 0", "Block 1", "<b>▸ Block 2</b>"]
    modules = page.change_layers(view(layers="shapes", group="block"))["layers_chart"]
    assert len(modules.layout.annotations) == 7


def test_a_statistic_that_a_stage_lacks_is_told(seeded: Settings) -> None:
    with writing() as session:
        for row in frames.tensor_table(1).itertuples():
            if row.stage == "dense":
                stored = session.get_one(TensorRow, (1, row.tensor, "dense", 0))
                stored.stats = {k: v for k, v in stored.stats.items() if k != "relative_error"}
    seen = page.change_layers(view(stage="dense", stat="relative_error"))
    reference = "Dense has no relative output error: it is what the others are compared with."
    assert seen["layers_chart"] == reference


@pytest.mark.parametrize("layers", LAYER_VIEWS)
def test_each_view_of_all_layers_has_its_question_data_and_controls(
    seeded: Settings, layers: str
) -> None:
    seen = page.change_layers(view(layers=layers, stage="sds"))
    assert isinstance(seen["layers_chart"], go.Figure)
    assert re.search(r'<p class="question">[^<]+\?', seen["layers_note"])
    assert "n = " in seen["layers_note"] or "of 21 tensors" in seen["layers_note"]
    assert seen["layers_table"].count("<tr>") > 3
    assert seen["stat"]["visible"] is (layers in ("map", "tree"))
    assert seen["group"]["visible"] is (layers == "shapes")
    chart = layers_chart(view(layers=layers, stage="sds"))
    assert chart.headline and chart.theory == OF_LAYERS[layers]


def test_the_map_can_show_the_difference_to_another_run(seeded: Settings) -> None:
    seen = page.change_layers(view(vs="sds-0002", stage="first", stat="std", against="run"))
    values = {v for row in seen["layers_chart"].data[0].z for v in row}
    assert values == {0.0}, "both were pruned the same way"
    asked_ = (
        "Where do sds-0001 and sds-0002, First pruning, differ in std? No colour: no difference."
    )
    assert asked_ in seen["layers_note"]
    missing = page.change_layers(view(vs="sds-0002", stage="redense", stat="std", against="run"))
    assert missing["layers_chart"] == "sds-0002: std is not measured, so nothing can be compared."


# while a run goes on ------------------------------------------------------------------------------


def test_a_refresh_does_nothing_until_the_run_has_moved(seeded: Settings) -> None:
    values = settled("sds-0002")
    seen = opened(run="sds-0002")["seen"]
    assert page.refresh(seen, values) == {}
    with writing() as session:
        session.get_one(Job, 2).done = 0.9
        session.add(Result(job_id=1, stage="run", family="work", value=1.0))
    assert page.refresh(seen, values) == {}, "progress, and another run's figure"
    with writing() as session:
        session.add(Result(job_id=2, stage="dense", family="perplexity", value=4.9))
    after = page.refresh(seen, values)
    assert isinstance(after["layers_chart"], go.Figure)
    assert list(after["perplexity_chart"].data[0].x) == [4.9]
    assert "tensor_chart" not in after, "its figures are the same"
    for name in CONTROLS:
        assert "value" not in after[name], "taken out of a person's hand"
    seen = {"marks": None, "stages": ["dense", "first", "control"], "snapshots": [], "offers": {}}
    after = page.refresh(seen, settled("sds-0001", show=["dense", "first"]))
    assert after["show"]["value"] == ["dense", "first", "redense", "sds"]


# choices ------------------------------------------------------------------------------------------


def test_only_runs_with_statistics_and_four_of_the_main_stages_are_offered(
    seeded: Settings,
) -> None:
    weights = weights_of("sds-0001")
    assert weights is not None
    assert weights.stages == ["dense", "first", "control", "redense", "second", "sds"]
    assert WeightsSelection(show=tuple(weights.stages)).settled(weights).show == tuple(
        weights.stages[:4]
    )
    assert WeightsSelection().settled(weights).show == ("dense", "first", "redense", "sds")
    same = view(vs="sds-0001", against="run")
    assert same.other is None and same.selection.against == ""
    assert [job.run for job in queries.runs_with_weights()] == ["sds-0002", "sds-0001"]
    assert main_stages(["dense", "rtn", "m-only", "lora", "dlqat"]) == ["dense", "rtn", "dlqat"]
    assert main_stages(["dense", "of-a-plugin"]) == ["dense", "of-a-plugin"]


def test_the_first_stage_shown_has_the_statistic(seeded: Settings) -> None:
    """A reconstructed stage, which comes last, has no error of its layers."""
    with writing() as session:
        for row in session.query(TensorRow).filter_by(job_id=1, stage="sds"):
            kept = {name: x for name, x in row.stats.items() if name != "relative_error"}
            columns = {c.name: getattr(row, c.name) for c in TensorRow.__table__.columns}
            session.add(TensorRow(**columns | {"stage": "sds-blocks", "stats": kept}))
    assert settled("sds-0001").settled(weights_of("sds-0001")).stage == "sds"
    assert given(stat="relative_error").settled(weights_of("sds-0001")).stage == "sds"
    assert given(stat="std").settled(weights_of("sds-0001")).stage == "sds-blocks"
    with writing() as session:
        for row in session.query(TensorRow).filter_by(job_id=2):
            row.stats = {k: v for k, v in row.stats.items() if k != "relative_error"}
    weights = weights_of("sds-0002")
    assert weights is not None
    assert WeightsSelection(stat="relative_error").settled(weights).stat == "kurtosis"


def test_all_statistics_can_be_saved(seeded: Settings) -> None:
    file = page.all_statistics("sds-0001")
    read = pd.read_csv(io.BytesIO(b64decode(file["data"])))
    assert file["name"] == "sds-0001-statistics.csv"
    assert len(read) == 126 and {"tensor", "stage", "zeros", "kurtosis"} <= {*read.columns}
    assert page.all_statistics("sds-0005") == gr.skip()


# a model without a run ----------------------------------------------------------------------------


def test_statistics_of_a_model_are_queued_by_one_press_and_refused_in_words(
    seeded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing() as session:
        session.add(Artifact(job_id=1, kind="model", path="sds-0001/model", bytes=1, created_at=0))
    choices, button, _ = inspect_model.open_panel("sds-0001", asked(HOST))
    values = [value for _, value in choices["choices"]]
    assert values[0] == str(seeded.artifacts / "sds-0001/model") and "toy" in values
    assert button["interactive"] is True
    _, run = inspect_model.compute("toy", asked(HOST))
    job = queries.job(run)
    assert (job.kind, job.state, job.config["model"]) == (NAME, "queued", "toy")
    assert "yet. They appear here block by block." in opened(run=run)["notice"]["value"]
    before = len(queries.jobs())
    told, run = inspect_model.compute("toy", asked(GUEST))
    assert run == gr.skip() and 'role="alert"' in told["value"]
    told, run = inspect_model.compute("no/such-model", asked(HOST))
    assert run == gr.skip() and "no/such-model" in told["value"]
    assert len(queries.jobs()) == before
    _, button, told = inspect_model.open_panel("", asked(GUEST))
    assert button["interactive"] is False and told["visible"]
