"""What a new dashboard shows: the runs that come with the package fill every view of theirs."""

import plotly.graph_objects as go

from backend.backup import examples
from backend.queue import stories
from backend.settings import Settings
from backend.store import queries
from jobs.imported import check_row
from tests.ui.lab import asked
from ui.pages import pages
from ui.pages.story.slides import slides

SHOWS = {  # page -> kinds of the runs it offers
    "weights": {"sds", "dlqat"},
    "quantization": {"dlqat"},
    "sensitivity": {"profile"},
    "trade-offs": {"profile"},
    "benchmark": {"benchmark"},
}
HIDDEN = {  # panels that a page leaves out for a run that has not measured them
    "sensitivity-agreement",
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
    for row in stories.stories():
        shown = slides(stories.stored_views(row.views), is_live=False)
        empty += [(row.title, slide.title) for slide in shown if not slide.parts[0].figure]
        assert len(shown) == 5
    assert [found for found in empty if found[0] not in HIDDEN] == []
    assert seen == {*SHOWS, "compare"}
