"""What a new dashboard shows: the runs that come with the package fill every view of theirs."""

import plotly.graph_objects as go

from backend.backup import examples
from backend.queue import reports
from backend.settings import Settings
from backend.store import queries
from jobs.imported import check_row
from tests.ui.lab import asked
from ui.pages import pages
from ui.pages.report.page import drawn, sources

SHOWS = {  # page -> kinds of the runs it offers
    "weights": {"sds", "dlqat"},
}
HIDDEN = {  # panels that a page leaves out for a run that has not measured them
    "compare-lines",
}


COMPARED = [f"{kind}-example,{kind}-example-2" for kind in ("sds", "dlqat")]


def test_no_view_of_an_example_is_empty(tables: Settings) -> None:
    examples.install_examples(check_row)
    kinds = {job.run: job.kind for job in queries.jobs()}
    seen, empty = set(), []
    for page in pages():
        runs = [run for run, kind in kinds.items() if kind in SHOWS.get(page.path, ())]
        for run in COMPARED if page.path == "compare" else runs:
            seen.add(page.path)
            for name, each in page.charts.items():
                chart = each.draw(asked(**{each.runs: run}))
                if not isinstance(chart.figure, go.Figure) and chart.frame is None:
                    empty.append((name, run, chart.figure))
    charts = sources(pages())
    for number in (each.id for each in reports.reports()):
        blocks = [
            drawn(block, charts) for block in reports.stored_blocks(reports.report(number).blocks)
        ]
        empty += [
            (str(number), b.block.chart, b.sentence) for b in blocks if b.source and not b.figure
        ]
        assert sum(b.source is not None for b in blocks) >= 5
    assert [found for found in empty if found[0] not in HIDDEN] == []
    assert seen == {*SHOWS, "compare"}
