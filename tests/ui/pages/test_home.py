"""The page Home: methods against their rivals, the histogram that moves, the toy."""

import re
from html import unescape
from typing import Any

import numpy as np
import pytest

from backend.queue.service import ESTIMATED_SECONDS
from backend.settings import Settings
from backend.statistics.tensors import BASE_STATISTICS, BINS, QUANTILES, TensorSnapshot
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import DecoderRow, Job
from jobs.benchmark.report import DecoderReport
from jobs.runtime.row_buffer import tensor_row
from tests.ui.lab import GUEST, asked, job, pressed, result, store
from ui.frame import current_user
from ui.pages.home import page as home
from ui.pages.home import showcase
from ui.runs.results import real_models_first
from ui.widgets.html import show_html

HOSTILE, HOST_NAME = "<b>x", current_user(asked()).name


def test_an_empty_folder_says_what_to_do_first(tables: Settings) -> None:
    shown = home.draw(None, asked())
    assert "Prune a toy model" in shown["words"] and shown["film"] == "" == shown["toy"]


# what there is to see -----------------------------------------------------------------------------


@pytest.fixture
def pruned(tables: Settings) -> Settings:
    """A finished run with weights of one tensor at every stage, and perplexities."""
    values = {"dense": 10.0, "first": 30.0, "control": 22.0, "redense": 15.0, "sds": 20.0}
    store(job(1), *(result(1, stage, "perplexity", value) for stage, value in values.items()))
    for place, stage in enumerate(("dense", "first", "redense", "sds")):
        counts = np.full(BINS, 10 - place)
        zeros = 10 * BINS - int(counts.sum())
        seen = TensorSnapshot(
            "model.layers.0.mlp.up_proj.weight",
            0,
            "mlp.up_proj",
            stage,
            10 * BINS,
            zeros,
            0,
            0,
            -1.0,
            1.0,
            counts,
            dict.fromkeys(BASE_STATISTICS, 1.0),
            (0.0,) * len(QUANTILES),
        )
        table, values = tensor_row(1, seen)
        store(table(**values))
    return tables


def test_a_method_is_shown_against_its_rival(pruned: Settings) -> None:
    (shown,) = showcase.exhibits()
    assert shown.title == "SDS against its control" and shown.value == "−9.1 %"
    assert [(label, text) for label, _, text, _ in shown.bars] == [
        ("Dense", "10.0"),
        ("First pruning", "30.0"),
        ("First pruning + adjustment (control)", "22.0"),
        ("Re-dense", "15.0"),
        ("Second pruning (SDS)", "20.0"),
    ]
    page = home.draw(None, asked())
    assert "SDS against its control" in page["methods"] and 'scope="row"' in page["methods"]
    assert {*home.draw(page["seen"], asked())} == {"seen", "toy"}, "nothing is drawn again"
    moving = showcase.film()
    assert moving is not None and moving["run"] == "sds-0001" and not moving["live"]
    assert moving["title"] == "SDS pruning of toy", "no output errors"
    assert [stage["name"] for stage in moving["stages"]] == ["dense", "first", "redense", "sds"]
    heights = [stage["heights"] for stage in moving["stages"]]
    assert {len(each) for each in heights} == {showcase.BARS}
    assert max(max(each) for each in heights) <= 1.0
    assert "perplexity of the model 30.0" in moving["stages"][1]["said"]
    shorter = {"dense": 10.0, "first": 30.0, "first-blocks": 12.0}  # newer, but without SDS itself
    store(
        job(2, kept_stage="first-blocks"),
        *(result(2, stage, "perplexity", value) for stage, value in shorter.items()),
    )
    assert [each.job.id for each in showcase.exhibits()] == [1]


def test_the_figure_is_of_the_toy_only_where_its_visitor_sees_it_at_work(
    pruned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(home, "film", shown.append)
    toy = {"name": showcase.TOY_NAME, "owner": HOST_NAME, "config": {"model": "toy"}}
    store(job(4, **toy, state="running"))
    seen = home.draw(None, asked())["seen"]
    with writing() as session:
        session.get_one(Job, 4).state = "succeeded"
    home.draw(seen, asked())
    home.draw(None, asked())  # another visit
    assert shown == ["sds-0004", "sds-0004", ""]


def test_the_toy_is_no_card_beside_a_real_model(pruned: Settings) -> None:
    """A newer run of it that lacks nothing."""
    values = {"dense": 10.0, "first": 30.0, "sds": 20.0}
    real = job(3, config={"model": "smollm2-135m"})
    store(real, *(result(3, stage, "perplexity", value) for stage, value in values.items()))
    toys = (job(4, config={"model": "toy"}), job(5, config={"model": "sds-0004"}))
    store(*toys, *(result(n, s, "perplexity", v) for n in (4, 5) for s, v in values.items()))
    (card,) = showcase.exhibits()
    assert card.job.id == 3 and "no control" in card.label
    newest = [queries.job(n) for n in (5, 4, 3, 1)]
    assert [each.id for each in real_models_first(newest)] == [3, 5, 4, 1]


def test_a_card_names_its_conditions(tables: Settings) -> None:
    texts = {use: {"corpus": "wikipedia"} for use in ("training", "evaluation")}
    rests = {
        "threads": 1,
        "source": "dequantised from Q4_1: already rounded",  # as the example runs have it
        "text": texts,
    }
    figures = {
        "perplexity": 12.0,
        "bits_per_weight": 4.25,
        "speed_up": 2.19,
        "parameters": 5e6,
        "parameter_share": 0.05,
        "bytes/compressed-tensors": 113e6,
    }
    named = {"model": HOSTILE, "bits": 4}
    store(
        job(1, kind="dlqat", config=named, kept_stage="dlqat", environment=rests),
        result(1, "dense", "perplexity", 10.0),
        result(1, "gptq", "perplexity", 15.0),
        *(result(1, "dlqat", name, value) for name, value in figures.items()),
    )
    (card,) = showcase.exhibits()
    assert card.title == "DL-QAT against GPTQ" and card.value == "−20.0 %"
    assert card.facts[1:] == [
        "200\u00a0MB in 16 bits → 113\u00a0MB",
        "2.19\u00a0× as fast on 1\u00a0thread",
        "trained and evaluated on the same kind of text",
        "source was already rounded to 4 bits",
    ]
    page = home.draw(None, asked())
    assert HOSTILE not in page["methods"] and "&lt;b&gt;" in page["methods"]


def test_a_drafter_is_shown_against_prompt_lookup(tables: Settings) -> None:
    store(job(1, kind="benchmark", config={"model": "toy"}))
    assert showcase.exhibits() == []
    for name, kind, speed_up in (("vanilla", "", 1), ("lookup", "", 1.3), ("x-0002", HOSTILE, 0.7)):
        report = DecoderReport(name, kind, speed_up=speed_up).record()
        store(DecoderRow(job_id=1, decoder=name, report=report))
    (card,) = showcase.exhibits()
    assert card.title == f"{HOSTILE} against prompt lookup"
    assert card.value == "0.70\u00a0× against 1.30\u00a0×"
    assert HOSTILE not in home.draw(None, asked())["methods"]


# the toy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        ({"state": "queued"}, ["queued", "starts in about 5\u00a0min", "Waiting for a free place"]),
        ({"state": "running", "eta_s": 8.0, "done": 1.0, "total": 4.0}, ["running", "25\u00a0%"]),
        ({"state": "succeeded"}, ["succeeded", "in 1\u00a0min", "SDS reaches perplexity 1.63"]),
        ({"state": "failed", "error": {"what": "No memory."}}, ["failed", "No memory."]),
    ],
)
def test_what_is_said_of_the_toy_is_its_state(
    tables: Settings, toy: dict[str, Any], words: list[str]
) -> None:
    """One run is at work, for four minutes still, and two of half a minute wait before it."""
    half = {ESTIMATED_SECONDS: 30.0}
    perplexity = {"dense": 1.5, "first": 2.04, "control": 1.7, "sds": 1.63}
    store(
        job(1, state="running", eta_s=240.0),
        job(2, state="queued", environment=half),
        job(3, state="queued", environment=half),
        job(9, name=showcase.TOY_NAME, owner=HOST_NAME, **toy),
        *(result(9, stage, "perplexity", value) for stage, value in perplexity.items()),
    )
    said = unescape(home.draw(None, asked())["toy"])
    assert "sds-0009" in said and all(word in said for word in words)
    assert home.draw(None, asked(GUEST))["toy"] == "", "of another visitor"


def test_the_toy_is_queued_with_its_control_and_told_at_once(tables: Settings) -> None:
    assert home.home_act(pressed("toy"), asked()) == {"said": show_html()}
    assert queries.job("sds-0001").config["control"] is True
    assert "queued" in home.draw(None, asked())["toy"]
    refused = home.home_act(pressed("toy"), asked(GUEST))["said"]["value"]
    assert 'role="alert"' in refused and home.home_act(pressed("odd"), asked())


def test_a_guest_may_not_start_the_toy_or_touch_the_examples(
    pruned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home.examples, "bundled", lambda: {"sds-example": None})
    page = home.draw(None, asked(GUEST))
    assert re.search(r'data-testid="run-toy"[^>]* disabled', page["words"])
    assert re.search(r'data-do="restore-examples"[^>]* disabled', page["methods"])
