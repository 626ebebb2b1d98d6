"""The page of a sweep: its means, its runs, and what can be done to all of them."""

import re
from typing import Any

import numpy as np
import pytest

from backend.metric_key import MetricKey
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from jobs import sweep
from jobs.evaluation.quality import window_losses
from jobs.metrics import PERPLEXITY, metric
from jobs.runtime.row_buffer import profile_row
from jobs.sweep import SweepRow, importance
from tests.ui.conftest import HOSTILE, mapped
from tests.ui.lab import GUEST, asked, pressed
from ui.pages.run import page as run
from ui.pages.sweep import page
from ui.pages.sweep.page import headline, importance_chart, ties
from ui.runs.actions import act

TOY: dict[str, Any] = {"model": "toy", "segments": 4, "context": 64, "windows": 2}


def draw(chosen: str | None = None, **query: str) -> dict[str, Any]:
    return page.draw(chosen, asked(**query))


@pytest.fixture
def swept(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Two patterns by two seeds; the figures of three of the four runs."""
    who = page.current_user(asked())
    fields = {"pattern": ["2:4", "70%"], "seed": ["0", "1"]}
    jobs = sweep.queue("sds", TOY, fields, who, name=HOSTILE)
    values = {jobs[0].id: 10.0, jobs[1].id: 12.0, jobs[2].id: 30.0}
    with writing() as session:
        for job_id, value in values.items():
            for metric, figure in (("perplexity", value), ("top1_agreement", 0.5)):
                row = Result(job_id=job_id, stage="sds", family=metric, value=figure, details={})
                session.add(row)
            session.get_one(Job, job_id).state = State.SUCCEEDED
        session.get_one(Job, jobs[3].id).state = State.FAILED
    return jobs


def test_means_and_spreads_are_drawn_and_tabled(swept: list[Job]) -> None:
    shown = draw(id=swept[2].run)
    (line,) = shown["chart_chart"].data
    assert list(line.x) == [11.0, 30.0] and list(line.y) == ["2:4", "70%"]
    assert list(line.error_x.array) == pytest.approx([2**0.5, 0.0])
    assert shown["chart_chart"].layout.yaxis.type == "category"  # 70% is no number
    assert "11.00" in shown["body"] and "± 1.4" in shown["body"]
    assert "Runs per dot: 1–2" in shown["chart_note"]
    assert "Best: 2:4, perplexity 11" in shown["chart_title"]  # the seed is no setting
    assert 'data-value="11.0"' in shown["chart_table"]
    assert shown["body"].count("<tr>") == (1 + 2) + (1 + 4)  # means, then runs, each with a head


def rows_of_sweep(jobs: list[Job]) -> list[SweepRow]:
    """The perplexities of the last stage."""
    rows = sweep.table(jobs, queries.results([job.id for job in jobs]))
    return [row for row in rows if row.metric == PERPLEXITY]


def store_losses(job: Job, losses: np.ndarray) -> None:
    with writing() as session:
        session.add(mapped(profile_row(job.id, window_losses("sds", losses.tolist()))))


def rows_of(results: dict[tuple[str, int], float]) -> list[SweepRow]:
    return [
        SweepRow({"pattern": pattern, "segments": size}, "sds", "perplexity", value, None, 1)
        for (pattern, size), value in results.items()
    ]


def test_what_each_setting_explains_adds_up() -> None:
    """Nearly all by the pattern, a little by the size, as much only by both together."""
    rows = rows_of({("2:4", 8): 18.0, ("2:4", 16): 14.0, ("50%", 8): 36.0, ("50%", 16): 36.0})
    found = importance(rows)
    assert list(found) == ["pattern", "segments", "Combinations and seeds"]
    assert found["pattern"] == pytest.approx(400 / 408) and sum(found.values()) == pytest.approx(1)
    chart = importance_chart(rows, metric(MetricKey("perplexity")), {"pattern": "Pattern"})
    assert chart is not None and chart.headline == "Pattern explains 98\u00a0% of the differences"
    assert importance(rows[:2]) == {} == importance(rows_of(dict.fromkeys([("a", 1), ("b", 2)], 3)))
    assert headline(rows_of({("a", 1): 3.0, ("b", 2): 2.0}), metric(PERPLEXITY)) == (
        "Best: b · 2, perplexity 2.000"
    )


def test_combinations_no_window_tells_from_the_best_are_named_with_it(
    swept: list[Job],
) -> None:
    text = np.linspace(2.0, 4.0, 8)
    close, rows = text + 0.01 + 0.1 * np.array([1, -1] * 4), rows_of_sweep(swept)
    assert ties(swept, rows, metric(MetricKey("perplexity"))) == []  # no losses were stored
    for job, losses in zip(swept, (text, text, close, close), strict=True):
        store_losses(job, losses)
    (tied,) = ties(swept, rows, metric(MetricKey("perplexity")))
    assert tied.values == {"pattern": "70%"}
    two = rows_of({("2:4", 8): 18.0, ("70%", 8): 19.0})
    told = headline(two, metric(PERPLEXITY), two[1:])
    assert told == "Best: 2:4 · 8, perplexity 18.00; not significantly different: 70% · 8"
    assert ties(swept, rows, metric(MetricKey("top1_agreement"))) == []


def test_a_combination_that_every_window_finds_worse_is_no_tie(swept: list[Job]) -> None:
    text = np.linspace(2.0, 4.0, 8)
    for job, losses in zip(swept, (text, text, text + 0.1, text + 0.1), strict=True):
        store_losses(job, losses)
    assert ties(swept, rows_of_sweep(swept), metric(MetricKey("perplexity"))) == []


def test_all_runs_are_cancelled_or_resumed_together_by_hosts(swept: list[Job]) -> None:
    head = page.draw(None, asked(GUEST, id=swept[0].run))["head"]
    assert re.search(r'data-do="resume-sweep"[^>]* disabled', head)
    assert "may not" in act(pressed("resume-sweep", swept[0].run), asked(GUEST))["value"]
    head = draw(id=swept[0].run)["head"]
    assert "Resume 1 run" in head and "Cancel" not in head

    def press(deed: str) -> str:
        return act(pressed(deed, swept[0].run), asked())["value"]

    assert f"{swept[3].run} is queued again." in press("resume-sweep")
    assert "Cancel 1 run" in draw(id=swept[0].run)["head"]
    assert f"{swept[3].run} is cancelled." in press("cancel-sweep")
    assert queries.job(swept[3].id).state == State.CANCELLED
    assert "Nothing was cancelled." in press("cancel-sweep")


def test_a_run_leads_to_its_sweep_and_one_of_none_to_the_list(swept: list[Job]) -> None:
    for name in ("sds-0001", "sds-9999", "", "x'y"):
        shown = draw(id=name)
        said = "is not part of a sweep" if name.startswith("sds") else "No sweep is chosen"
        assert said in shown["head"] and 'href="runs"' in shown["head"]
    who = page.current_user(asked())
    assert f'href="sweep?id={swept[1].run}"' in run.head_html(queries.job(swept[1].id), who)
    assert "sweep?id" not in run.head_html(queries.job(1), who)
    assert draw(id=swept[0].run)["settings"]["visible"] is False  # a single setting
    assert page.IMPORTANCE.parts[0] in draw(id=swept[0].run)
