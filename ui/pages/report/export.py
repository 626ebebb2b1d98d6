"""A report as one HTML file that needs no network: figures, tables and the script that draws."""

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from backend.queue.reports import runs_of
from backend.store.session import now_ms
from backend.store.tables import Report
from ui.charts.chart import Chart
from ui.charts.template import templates
from ui.frame import VERSION
from ui.pages.report.blocks import DrawnBlock
from ui.static import SCRIPTS
from ui.templates import render
from ui.widgets.panel import cell

MAX_ROWS = 200  # of a table
MIN_HEIGHT = 320  # px


def exported(report: Report, blocks: Sequence[DrawnBlock]) -> str:
    figures = {each.block.id: each.figure for each in blocks if each.figure}
    tables = {
        each.block.id: _table(each.chart)
        for each in blocks
        if each.chart and not each.figure and not each.sentence
    }
    heights = {each.block.id: height_of(each) for each in blocks}
    shade = (SCRIPTS / "shade.js").read_text(encoding="utf-8")
    return render(
        "pages/report/export.html",
        report=report,
        runs=runs_of(each.block for each in blocks),
        blocks=blocks,
        tables=tables,
        heights=heights,
        now=now_ms(),
        version=VERSION,
        plotly=_script(get_plotlyjs()),
        shade=_script(shade),
        templates=_json(templates()),
        figures=_json(json.dumps(figures)),
    )


def _table(chart: Chart) -> tuple[list[str], list[list[str]]]:
    assert chart.frame is not None, "a chart with neither figure nor frame has a sentence"
    rows = chart.frame.head(MAX_ROWS).itertuples(index=False, name=None)
    return [*chart.frame.columns], [[_text(value) for value in row] for row in rows]


def height_of(block: DrawnBlock) -> int:
    meta = ((block.figure or {}).get("layout") or {}).get("meta") or {}
    own = block.source.chart.height if block.source else 0
    return max(own, MIN_HEIGHT) + int(meta.get("more", 0))


def _text(value: Any) -> str:
    written = cell(value)
    return written if isinstance(written, str) else written[0]


def _script(source: str) -> Markup:
    return Markup(source.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _json(text: str) -> Markup:
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))
