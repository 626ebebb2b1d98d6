"""The pages of runs whose stages are no models: a drafter, a benchmark, an answer."""

from typing import Any

import pandas as pd
import pytest

from backend.settings import Settings
from backend.store.states import State
from backend.store.tables import DecoderRow, StepTime
from jobs.benchmark.report import DecoderReport
from jobs.kind import kinds
from tests.ui.lab import asked, job, result, saved_folder, store
from ui.pages.run import page as run
from ui.pages.run.outcome import finding, outcome, stage_tables, times
from ui.runs.actions import next_links
from ui.runs.results import RunResults, display_units, kind_of, speed_conditions

HEADS = [result(2, f"head-{k}", m, 0.5) for k in (1, 2) for m in ("top1", "top3")]
DRAFTER = [
    result(2, "drafter", "steps", 500.0),
    result(2, "drafter", "accepted_length", 1.85, nodes=8),
    *HEADS,
]


@pytest.fixture
def stored(tables: Settings) -> None:
    store(job(2, kind="amphista", config={"model": "toy"}), *DRAFTER)
    saved_folder("amphista-0002", "drafter")
    store(job(3, kind="benchmark", config={"model": "toy", "drafters": "amphista-0002"}))
    store(job(4, kind="amphista", config={"model": "toy"}, state=State.FAILED))


@pytest.mark.parametrize(("gain", "said"), [(1.6, ""), (1.02, " (no gain)")])
def test_a_forecast_is_told_beside_what_was_measured(stored: None, gain: float, said: str) -> None:
    row = job(2, kind="amphista", config={"model": "toy"}, kept_stage=None)
    assert "2.00 tokens" not in finding(row, RunResults(kind_of(row), DRAFTER, row))
    more = [
        result(2, "drafter", n, v) for n, v in (("predicted_speed_up", gain), ("draft_cost", 2.65))
    ]
    figures = RunResults(kind_of(row), [*DRAFTER, *more], row)
    html = finding(row, figures)
    predicted = f"Predicted on this machine: {gain:.2f}\u00a0× the speed of plain decoding{said}."
    assert predicted in html
    assert "One draft costs 2.65 forward passes" in html and "Not measured yet." in html
    for name, speed_up in (("amphista-0002+lookup", 1.3), ("amphista-0002", 0.895)):
        report = DecoderReport(name, "Hydra", speed_up=speed_up).record()
        store(DecoderRow(job_id=3, decoder=name, report=report))
    assert finding(row, figures).startswith("Measured: 0.90\u00a0×")


def test_stages_that_share_a_metric_stand_together_in_order(stored: None) -> None:
    rows = [
        result(1, "dense", "perplexity", 9.0),
        result(1, "sds", "zero_share", 0.5),
        result(1, "sds", "perplexity", 9.5),
    ]
    figures = RunResults(kinds()["sds"], rows)
    assert figures.comparable_stages() == [["dense", "sds"]]
    assert "<table" in stage_tables(RunResults(kinds()["sds"], rows[:1]))  # one stage alone, too
    """Until all are measured the figures of one must not look like another's."""
    rows = [result(1, "dense", "perplexity", 9.0), result(1, "sds", "zero_share", 0.5)]
    html = stage_tables(RunResults(kinds()["sds"], rows))
    assert html.count("<table") == 1 and "Dense" in html and "Second pruning" in html
    found = [
        result(2, stage, name, 1.0)
        for stage, name in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"))
    ]
    assert RunResults(kinds()["amphista"], found).comparable_stages() == [["a", "c"], ["b"], ["d"]]
    points = pd.DataFrame({"family": ["top1", "loss"], "step": [1, 1], "value": [0.25, 2.0]})
    assert display_units(points)["value"].tolist() == [25.0, 2.0]
    assert display_units(points[:0]).empty


def links(number: int, **values: Any) -> str:
    return next_links(job(number, **values))


def test_each_run_leads_on_to_what_it_is_good_for(stored: None) -> None:
    config = {"model": "toy"}
    trained = links(2, kind="amphista", config=config)
    assert 'href="new-run?kind=benchmark&amp;model=toy&amp;drafters=amphista-0002"' in trained
    assert 'href="playground?sides=toy%2Camphista-0002"' in trained and "weights" not in trained
    assert links(4, kind="amphista", config=config, state=State.FAILED) == ""
    profiled = links(5, kind="profile", config=config)
    assert 'href="workbench?model=toy"' in profiled


def test_weights_and_charts_are_offered_where_there_are_some(seeded: Settings) -> None:
    assert 'href="weights?run=sds-0001"' in links(1)
    assert "See its weights" not in links(9)
    assert run.draw(None, asked(id="sds-0001"))["stages"]["visible"] is True


def test_figures_of_drafter_and_heads_stand_apart(stored: None) -> None:
    row = job(2, kind="amphista")
    figures = RunResults(
        kind_of(row), DRAFTER, row, [StepTime(job_id=2, step="training", seconds=61.0)]
    )
    assert figures.comparable_stages() == [["drafter"], ["head-1", "head-2"]]
    html = stage_tables(figures)
    assert html.count("<table") == 1 and html.index("1.85") < html.index("<table")
    assert html.count("<tr>") == 3 and "–" not in html  # head of the table and two of the drafter
    assert (
        "1\u00a0min\u00a01\u00a0s" in outcome(row, figures, 0) and times(figures) == ""
    )  # one bar says nothing


@pytest.mark.parametrize(
    ("kind", "recorded", "details", "said"),
    [
        (
            "benchmark",
            {"decoder": "native (AVX2)", "precision": "bfloat16", "threads": 1},
            {},
            "native (AVX2) decoder, bfloat16, 1\u00a0thread, prefill included.",
        ),
        (
            "dlqat",
            {"threads": 2},
            {"dtype": "bfloat16", "prompt": 64, "tokens": 48},
            "decoder not recorded, bfloat16, 2\u00a0threads, 48 tokens after a prompt of 64, "
            "prefill excluded.",
        ),
        (
            "evaluation",
            {"precision": "float32"},
            {},
            "decoder not recorded, float32, threads not recorded, prefill excluded.",
        ),
    ],
)
def test_a_speed_is_told_with_its_conditions(
    kind: str, recorded: dict[str, Any], details: dict[str, Any], said: str
) -> None:
    row = job(2, kind=kind, environment=recorded, kept_stage=None)
    rows = [result(2, "vanilla", "tokens_per_second", 47.6, **details)]
    assert speed_conditions(row, rows) == f"Speeds: {said}"
    assert said in outcome(row, RunResults(kind_of(row), rows, row), 0)
    assert speed_conditions(row, HEADS) == ""
