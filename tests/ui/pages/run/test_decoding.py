"""The charts of a benchmark and of a drafter on the page of their run."""

from typing import Any

import pytest

from backend.settings import Settings
from backend.store.tables import DecoderRow
from jobs.benchmark.report import (
    COMBINED,
    VANILLA,
    DecoderReport,
    decoder_label,
    decoder_reports,
)
from tests.ui.lab import asked, job, point, result, store
from ui.pages.run import decoding as charts
from ui.pages.run import page
from ui.theme import LIGHT, ink

HOSTILE = "<b>amphista</b>"
CONFIG = {
    "model": "toy",
    "drafters": "amphista-0002",
    "rounds": 3,
    "max_new_tokens": 64,
    "precision": "auto",
    "count": 12,
    "nodes": 8,
}
HITS = {(0,): 0.4, (1,): 0.2, (0, 0): 0.3, (0, 1): 0.0, (1, 0): 0.1}
HERE = {
    "cpu": "a processor, 2 of 2 cores",
    "device": "cpu",
    "threads": 1,
    "precision": "float32",
    "text": {"prompts": {"corpus": "toystories", "count": 12}},
}


def figures(name: str, up: float, lengths: dict[int, int], kind: str = "") -> DecoderRow:
    """What the job records of one decoder."""
    accepted = sum(n * count for n, count in lengths.items()) / sum(lengths.values())
    tasks = {"question": up - 0.2, "story": up + 0.2}
    spread = (up - 0.1, up + 0.1)
    report = DecoderReport(
        name,
        kind,
        8 if kind else 1,
        50 * up,
        up,
        accepted,
        1.1 if kind else 1.0,
        prompts=12,
        ranges=dict.fromkeys(("speed_up", *(f"speed_up/{task}" for task in tasks)), spread),
        lengths=lengths,
        hits=HITS if kind and not name.endswith(COMBINED) else {},  # else a part of it is asked
        milliseconds={"draft": 1.0 if kind else 0.0, "verify": 10.0, "accept": 0.5, "cache": 0.25},
        tasks={task: (each, accepted) for task, each in tasks.items()},
    )
    return DecoderRow(job_id=1, decoder=name, report=report.record())


@pytest.fixture
def measured(tables: Settings) -> str:
    run = job(1, kind="benchmark", config=CONFIG, environment=HERE, name=HOSTILE)
    store(
        run,
        figures(VANILLA, 1.0, {1: 100}),
        figures("lookup", 1.1, {1: 80, 3: 20}),
        figures("amphista-0002", 1.5, {1: 40, 2: 40, 4: 20}, "Amphista"),
    )
    return "benchmark-0001"


def draw(**query: str) -> dict[str, Any]:
    """What is shown at an address."""
    return page.draw(None, asked(**{"id": "benchmark-0001"} | query))


def test_everything_is_drawn_and_told(measured: str) -> None:
    shown = draw()
    told = "(amphista-0002) decodes 1.50\u00a0× as fast as plain decoding; prompt lookup alone"
    assert f"{told} 1.10\u00a0×." in shown["head"]
    assert HOSTILE not in shown["head"] and "&lt;b&gt;" in shown["head"]
    bars = shown["bars_chart"].data[0]
    assert list(bars.x) == [1.0, 1.5, 1.1]  # vanilla, then the fastest
    assert list(bars.y)[1] == "Amphista<br>amphista-0002"
    gain, even, predicted = shown["yield_chart"].data
    assert list(predicted.x) != [None, 1.9, None]  # its run is not there
    assert list(gain.x) == [1.0, 2.0, 1.4] and list(even.x) == [1.0, 1.1, 1.0]
    assert len(shown["time_chart"].data) == 4 and " ms, 2.00 tokens" in str(shown["time_chart"])
    for panel in page.PANELS:
        assert shown[panel.name]["visible"] and all(shown[part] for part in panel.parts)
    assert 'data-value="1.5"' in shown["bars_table"]
    assert shown["drafter"]["visible"] is False  # there is but one


def test_decoders_have_one_color_on_every_page(measured: str) -> None:
    paint = charts.colors(decoder_reports(measured))
    assert decoder_label(f"amphista-0002{COMBINED}") == "Prompt lookup + amphista-0002"
    assert paint[VANILLA] == LIGHT.muted and len({*paint.values()}) == len(paint)
    assert ink(LIGHT.blue) == "var(--blue)" and ink(paint["lookup"]) == paint["lookup"]


def test_the_peak_over_tree_sizes_is_named_beside_what_was_measured(measured: str) -> None:
    """A drafter's own page has the same two charts, and no other of them."""
    sizes = {1: (1.0, 1.0), 4: (1.08, 1.6), 16: (0.6, 2.0)}
    store(job(2, kind="amphista", config={"architecture": "eagle"}))
    for nodes, values in sizes.items():
        names = ("tree/speed-up", "tree/accepted")
        store(*(point(2, n, nodes, v, "nodes") for n, v in zip(names, values, strict=True)))
    benchmark, drafter = draw(), draw(id="amphista-0002")
    for shown in (benchmark, drafter):
        assert "peak 1.08\u00a0× with 4 nodes; measured 1.50\u00a0× with 8" in shown["sizes_title"]
        assert "peak 2.00 tokens per step with 16 nodes" in shown["lengths_title"]
    assert len(benchmark["sizes_chart"].data) == 3 and len(drafter["sizes_chart"].data) == 2
    assert not drafter["bars"]["visible"] and "curve1_chart" not in page.draw_curves(
        asked(id="amphista-0002")
    )


def test_decoders_stand_beside_each_other_in_each_task(measured: str) -> None:
    fast = draw()["tasks_chart"]
    assert list(fast.layout.yaxis.ticktext) == ["question", "story"]
    assert list(fast.data[0].x) == pytest.approx([1.3, 1.7])
    assert list(fast.data[0].error_x.array) == pytest.approx([0.3, -0.1])
    assert [round(y) for y in fast.data[1].y] == [0, 1]


def test_the_tree_is_drawn_with_what_was_right_and_what_was_expected(
    measured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "gains_by_path", lambda run: {(0,): 0.5, (0, 0): 0.25})
    shown = draw()
    edges, nodes = shown["tree_chart"].data
    assert list(nodes.x) == [0, 1, 1, 2, 2, 2] and list(nodes.y) == [0, 0, 2, 0, 1, 2]
    assert list(nodes.text)[1:] == ["40 %", "20 %", "30 %", "0 %", "10 %"]
    assert len(edges.x) == 3 * 5
    assert "accepted in 40.0 % of steps<br>on held-out answers 50.0 %" in nodes.customdata[1]
    assert "The first guess is accepted in 40\u00a0% of steps" in shown["tree_title"]
    assert "Head 2, 2nd choice after 1st" in shown["tree_table"]
    assert 'data-value="1.75"' in shown["yield_table"]  # expected of the whole tree


def test_a_drafter_is_drawn_with_its_prediction(measured: str) -> None:
    store(
        job(2, kind="amphista", config={"architecture": "eagle"}),
        result(2, "drafter", "predicted_length", 1.9),
        result(2, "drafter", "parameters", 1234),
    )
    shown = draw()
    assert shown["yield_chart"].data[2].x[1] != 1.9  # of the trees that are the default
    assert "1,234" in shown["yield_table"]
    default = {**CONFIG, "nodes": 0}
    store(job(3, kind="benchmark", config=default, environment=HERE))
    lengths = {1: 40, 2: 40, 4: 20}
    rows = (figures(VANILLA, 1.0, {1: 100}), figures("amphista-0002", 1.5, lengths, "Amphista"))
    for row in rows:
        row.job_id = 3
    store(*rows)
    assert draw(id="benchmark-0003")["yield_chart"].data[2].x[1] == 1.9


def test_a_benchmark_without_figures_shows_no_chart(tables: Settings) -> None:
    store(job(1, kind="benchmark", state="running", config=CONFIG))
    shown = draw()
    assert not any(shown[panel.name]["visible"] for panel in page.PANELS)
    assert "appear here" in shown["results"]


def test_the_tree_in_the_address_is_one_of_the_run(measured: str) -> None:
    store(figures("amphista-0003", 1.2, {1: 10, 2: 10}, "Medusa"))
    assert page.draw("amphista-0003", asked(id=measured))["drafter"]["value"] == "amphista-0003"
    for odd in ("<b>", "amphista-9999", "x" * 5000, None):
        shown = page.draw(odd, asked(id=measured, drafter="sds-0001"))
        assert shown["drafter"]["value"] == "amphista-0002"


def test_decoders_keep_their_colors_and_tables_their_figures(measured: str) -> None:
    decoders = decoder_reports("benchmark-0001")
    first, other = (
        charts.speed_up(order, "").figure.data[0].marker.color
        for order in (decoders, decoders[::-1])
    )
    assert list(first) == list(other)[::-1]  # a decoder keeps its color
    times = charts.step_time(decoders, "").figure.data
    assert [sum(bar.x) for bar in times] == [1.0, 30.0, 1.5, 0.75]
    shown = draw()
    for value in shown["yield_chart"].data[0].x:
        assert f'data-value="{value}"' in shown["yield_table"]
