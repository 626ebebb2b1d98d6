"""Reports: what is added from every page, how it is shown, and the file it is exported to."""

import base64
import json
import re
from html.parser import HTMLParser
from typing import Any

import gradio as gr
import pytest

from backend.queue import reports as writing
from backend.queue.actor import Actor
from backend.queue.reports import ReportBlock, report, reports, stored_blocks
from backend.settings import Settings
from tests.ui.conftest import HOSTILE
from tests.ui.lab import GUEST, asked, pressed
from ui.frame import PageChart
from ui.pages import pages
from ui.pages.report import page as report_page
from ui.pages.report.page import (
    act,
    add_chart,
    draw,
    drawn,
    drawn_blocks,
    known_charts,
    paragraphs,
    sources,
)
from ui.widgets.panel import PlotlyView

HOST = Actor("mira", "host")
TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def number(seeded: Settings) -> int:
    """A report with a text, a chart of one run, and one that compares two."""
    made = writing.create_report(HOSTILE, HOST)
    writing.add_text(made, f"# Finding\n\n{HOSTILE}\nsecond line", HOST)
    writing.add_chart(made, "weights-overlay", f"run=sds-0001&tensor={TENSOR}&view=overlay", HOST)
    writing.add_chart(made, "compare-figures", "ids=sds-0001,sds-0002", HOST)
    writing.write_text(made, 2, HOSTILE, HOST)
    return made


def top(**query: str) -> str:
    return str(draw(asked(**query))["view"]["top"])


def test_every_chart_of_every_page_can_be_added(built: gr.Blocks) -> None:
    views = {b.elem_id for b in built.blocks.values() if isinstance(b, PlotlyView)}
    assert views <= {*sources(pages())}
    assert len(views) > 10


def test_every_chart_is_drawn_from_an_address_or_says_why_not(seeded: Settings) -> None:
    """Of runs that have all figures, of those that have none, and without an address."""
    failed = []
    for name, source in known_charts().items():
        for address in ("", "run=sds-0001&ids=sds-0001,sds-0002&id=sds-0001", "run=sds-0099&id=x"):
            shown = drawn(ReportBlock(1, name, address), {name: source})
            if shown.sentence == "The chart could not be drawn; the log says why.":
                failed.append((name, address))
            assert shown.figure or shown.sentence or not shown.chart.frame.empty
    assert failed == []


def test_the_list_says_how_a_report_begins(number: int) -> None:
    assert "second line</p>" in top() and "<img" not in top() and "Finding" not in top()


def test_a_report_shows_its_blocks_in_order(number: int) -> None:
    view = draw(asked(n=str(number)))["view"]
    text, weights, results = view["blocks"]
    assert [b["id"] for b in view["blocks"]] == [1, 2, 3]
    assert "<h2>Finding</h2>" in text["html"] and text["figure"] is None
    assert next(t["name"] for t in weights["figure"]["data"]) == "Dense · no exact zeros"
    assert "Weights: One tensor · sds-0001 · " + TENSOR in weights["html"]
    assert "<table" in results["html"] and "135" not in results["html"]
    assert "5.900" in results["html"], "the perplexity of the seeded run"
    assert f'href="weights?run=sds-0001&amp;tensor={TENSOR}' in weights["html"]
    assert paragraphs("# A\n\nb\nc\n\n\n\n#d") == [(True, "A"), (False, "b\nc"), (False, "#d")]
    assert paragraphs(" \n") == []


def test_what_people_write_stays_text(number: int) -> None:
    view = draw(asked(n=str(number)))["view"]
    for html in (view["top"], top(), *(block["html"] for block in view["blocks"])):
        assert "<img" not in html
        assert "${" not in html and "{{" not in html
    file = report_page.exported(report(number), drawn_blocks(report(number)))
    assert "<img src" not in file


class Loading(HTMLParser):
    """Collects what a page would load, and the elements it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action")]


def test_an_exported_report_holds_all_it_needs(number: int) -> None:
    name, data = _export(number)
    assert re.fullmatch(r"[\w.-]+\.html", name)
    read = Loading()
    read.feed(data)
    assert read.loads == [] and "img" not in read.elements and "link" not in read.elements
    assert "default-src 'none'" in data
    figures = json.loads(re.search(r"figures = (\{.*\});", data)[1])
    assert [len(f["data"]) > 2 for f in figures.values()] == [True]
    assert "Perplexity" in data and "second line" in data


def _export(number: int) -> tuple[str, str]:
    file = act(pressed("export", str(number)), asked())["file"]
    return file["name"], base64.b64decode(file["data"]).decode()


def test_an_unknown_chart_begins_no_report_and_no_report_is_told(
    seeded: Settings,
) -> None:
    said = act(pressed("create", text="Ours"), asked(add="weights-nothing"))
    assert "There is no chart" in said["message"]["value"]
    assert reports() == []
    assert "up to six runs" in top()


@pytest.mark.parametrize(
    ("chart", "query"),
    [
        ("compare-lines", "ids=sds-0001%2Csds-0002"),
        ("weights-heatmap", "run=sds-0001&vs=sds-0002"),
        ("run-stages", "id=sds-0001"),
    ],
)
def test_charts_are_chosen_for_runs(seeded: Settings, chart: str, query: str) -> None:
    number = writing.create_report("Chosen", HOST)
    add_chart(["sds-0001", "sds-0002"], chart, asked(n=str(number)))
    assert [b.query for b in stored_blocks(report(number).blocks)] == [query]
    said = add_chart([], chart, asked(n=str(number)))
    assert "Choose one run or more" in said["message"]["value"]


def test_blocks_are_moved_noted_and_removed(number: int) -> None:
    here = str(number)
    act(_block("up", number, 2), asked())
    act(_block("write", number, 3, "Pruned first."), asked())
    act(_block("remove", number, 1), asked())
    stored = stored_blocks(report(number).blocks)
    assert [(b.id, b.text == "Pruned first.") for b in stored] == [(2, False), (3, True)]
    assert act(pressed("delete", here), asked())["leave"] == "report"
    assert "There is no report" in top(n=here)


def _block(do: str, number: int, block: int, text: str = "") -> Any:
    event = pressed(do, str(number), text)
    event._data["file"] = str(block)
    return event


def test_guests_read_and_save_files_but_change_nothing(number: int) -> None:
    view = draw(asked(GUEST, n=str(number)))
    assert view["adding"]["visible"] is False
    assert 'data-do="remove"' not in view["view"]["blocks"][0]["html"]
    for do in ("create", "add", "rename", "text", "write", "up", "down", "remove", "delete"):
        said = act(_block(do, number, 1, "Mine"), asked(GUEST, add="run-stages", id="sds-0001"))
        assert "may not" in said["message"]["value"], do
    assert len(stored_blocks(report(number).blocks)) == 3
    assert act(pressed("export", str(number)), asked(GUEST))["file"]["name"]


def test_one_chart_that_fails_keeps_no_other_away(number: int, caplog: Any) -> None:
    def fails(_request: gr.Request) -> Any:
        raise ZeroDivisionError

    known = dict(known_charts())
    broken = PageChart("Broken", "", 100, fails)
    known["weights-overlay"] = type(known["weights-overlay"])(pages()[0], broken)
    shown = [drawn(block, known) for block in stored_blocks(report(number).blocks)]
    assert [bool(each.sentence) for each in shown] == [False, True, False]
    assert "ZeroDivisionError" in caplog.text


def test_a_chart_of_an_address_begins_a_report_or_joins_one(seeded: Settings) -> None:
    address = {"add": "weights-heatmap", "run": "sds-0001", "stat": "kurtosis"}
    assert "Weights: All layers" in top(**address)
    made = act(pressed("create", text="Ours"), asked(**address))
    assert made["leave"] == "report?n=1"
    act(pressed("add", "1"), asked(**address | {"stat": "std"}))
    assert [b.query for b in stored_blocks(report(1).blocks)] == [
        "run=sds-0001&stat=kurtosis",
        "run=sds-0001&stat=std",
    ]
