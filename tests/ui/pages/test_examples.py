"""What a new dashboard shows: the runs that come with the package fill every view of theirs."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from backend.backup import examples
from backend.queue import stories
from backend.settings import Settings
from backend.store import queries
from jobs.imported import check_row
from jobs.record import record
from tests.ui.lab import asked
from ui.pages import pages
from ui.pages.compare import page as compare
from ui.pages.home import page as home
from ui.pages.run import page as run_page
from ui.pages.runs import page as runs
from ui.pages.story.slides import slides

ROOT = Path(__file__).parents[3]

SHOWS = {  # page -> kinds of the runs it offers
    "weights": {"sds", "dlqat"},
}
HIDDEN = {  # panels that a page leaves out for a run that has not measured them
    "weights-groups",
    "compare-lines",
    "compare-speedup",
    "compare-accepted",
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
                view = {"weights-more": "joint", "weights-groups": "groups"}.get(name, "")
                chart = each.draw(asked(**{each.runs: run, "view": view}))
                if not isinstance(chart.figure, go.Figure) and chart.frame is None:
                    empty.append((name, run, chart.figure))
    for row in stories.stories():
        shown = slides(stories.stored_views(row.views), is_live=False)
        empty += [(row.title, slide.title) for slide in shown if not slide.parts[0].figure]
        assert len(shown) == 5
    assert [found for found in empty if found[0] not in HIDDEN] == []
    assert seen == {*SHOWS, "compare"}


SAID = (  # run, stage, metric, and the places where pages say it
    ("dlqat-example", "dlqat", "perplexity", r"DL-QAT reaches perplexity (\S+),"),
    ("dlqat-example", "dlqat", "perplexity", r"DL-QAT kept (\S+)"),
    ("dlqat-example", "dense", "perplexity", r"; dense ([\d.]+\d)"),
    ("dlqat-example", "dense", "perplexity", r"perplexity \S+ instead of (\d+\.\d+)"),
    ("dlqat-example", "gptq", "perplexity", r"; GPTQ (\S+);"),
    ("dlqat-example", "dlqat", "speed_up", r"(\S+) × as fast on 2 threads"),
    ("dlqat-example", "dlqat", "speed_up", r"Speed-up, × (\S+) ±"),
    ("dlqat-example", "dlqat", "bits_per_weight", r"at (3\S+) bits per weight"),
    ("dlqat-example", "dlqat", "bits_per_weight", r"Bits per weight (\d\S+)"),
    ("dlqat-example", "dlqat", "bytes", r"16 bits → (\S+) MB"),
    ("dlqat-example", "dlqat", "bytes", r"Size(?: after)? ([\d.]+) MB"),
    ("sds-example", "sds", "perplexity", r"SDS reaches perplexity (\S+),"),
    ("sds-example", "sds", "perplexity", r"\(SDS\) kept (\S+)"),
    ("sds-example", "control", "perplexity", r"its control at (\S+);"),
    ("benchmark-example", "lookup", "speed_up", r"[,;] [Pp]rompt lookup (\S+) ×"),
    ("benchmark-example", "amphista-example-2+lookup", "speed_up", r"(\S+) × with prompt lookup"),
    ("benchmark-example", "amphista-example", "speed_up", r"(\S+) × against \S+ × speed-up"),
    ("benchmark-example", "amphista-example", "speed_up", r"Measured: (\S+) × the speed"),
    (
        "benchmark-example",
        "amphista-example",
        "accepted_length",
        r"(\S+) tokens per step with trees",
    ),
    (
        "benchmark-example",
        "amphista-example",
        "accepted_length",
        r"hista: predicted peak \S+ tok.{30,60}, measured ([\d.]+\d)",
    ),
    ("amphista-example", "drafter", "accepted_length", r"Accepted length, \D*(\S+) predicted"),
    (
        "amphista-example",
        "drafter",
        "accepted_length",
        r"Amphista · .{40,60} (\S+) tokens per",
    ),
)


def test_a_quantity_of_an_example_has_one_value_everywhere(tables: Settings) -> None:
    """On Home, Run, Runs and Compare, as rounded there, and in the record of `show --json`."""
    examples.install_examples(check_row)
    named = dict.fromkeys(run for run, *_ in SAID)
    pages_shown = [home.draw(None, asked()), runs.draw(asked())]
    pages_shown += [run_page.draw(None, asked(id=run)) for run in named]
    pages_shown.append(compare.draw(asked(ids="dlqat-example,sds-example")))
    readme = [line for line in (ROOT / "README.md").read_text().split("\n") if "-example" in line]
    said = [*map(plain_text, pages_shown), " ".join(readme)]
    stored = {
        (run, row["stage"], str(row["metric"]).partition("/")[0]): row["value"]
        for run in named
        for row in record(run)["results"]
        if not str(row["metric"]).startswith("speed_up/")
    }
    for run, stage, name, pattern in SAID:
        figures = [figure for text in said for figure in re.findall(pattern, text)]
        value = stored[run, stage, name] / (1e6 if name == "bytes" else 1)
        assert figures, pattern
        for figure in figures:
            assert f"{value:.{len(figure.partition('.')[2])}f}" == figure, (run, pattern)


def plain_text(shown: Any) -> str:
    """All text of a page's updates, without markup."""
    if isinstance(shown, dict):
        return " ".join(map(plain_text, shown.values()))
    text = re.sub("<[^>]*>", " ", shown) if isinstance(shown, str) else ""
    return re.sub(r"\s+", " ", unescape(text))
