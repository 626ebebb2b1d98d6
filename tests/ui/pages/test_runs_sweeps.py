"""Sweeps in the table of runs: one row that opens, its means, ties and what can be done to it."""

import re
from typing import Any

import numpy as np
import pytest

from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from jobs import sweep
from jobs.evaluation.quality import window_losses
from jobs.metrics import PERPLEXITY
from jobs.runtime.row_buffer import profile_row
from jobs.sweep import SweepRow, importance
from tests.ui.conftest import HOSTILE, mapped
from tests.ui.lab import GUEST, HOST, asked, pressed
from ui.frame import current_user
from ui.pages.run import page as run
from ui.pages.runs import page
from ui.pages.runs.sweeps import SweepSummary, summary
from ui.runs.view import TableQuery, query_runs

TOY: dict[str, Any] = {"model": "toy", "segments": 4, "context": 64, "windows": 2}


@pytest.fixture
def swept(seeded: Settings) -> list[Job]:
    """Two patterns by two seeds; the figures of three of the four runs."""
    fields = {"pattern": ["2:4", "70%"], "seed": ["0", "1"]}
    jobs = sweep.queue("sds", TOY, fields, current_user(asked()), name=HOSTILE)
    values = {jobs[0].id: 10.0, jobs[1].id: 12.0, jobs[2].id: 30.0}
    with writing() as session:
        for job_id, value in values.items():
            for name, figure in (("perplexity", value), ("top1_agreement", 0.5)):
                row = Result(job_id=job_id, stage="sds", family=name, value=figure, details={})
                session.add(row)
            session.get_one(Job, job_id).state = State.SUCCEEDED
        session.get_one(Job, jobs[3].id).state = State.FAILED
    return jobs


def table(who: tuple[str, str] = HOST, **query: str) -> str:
    return str(page.draw(asked(who, **query))["table"])


def summarized(swept: list[Job]) -> SweepSummary:
    groups = query_runs(TableQuery.from_address(asked())).groups
    return summary(next(group for group in groups if group.sweep == swept[0].run))


def test_a_folded_sweep_is_one_row_with_mean_spread_and_seeds(swept: list[Job]) -> None:
    html, first = table(), swept[0].run
    assert f'data-testid="sweep-{first}"' in html and f"row-{first}" not in html
    assert "11.00 ± 1.4" in html and "(2 seeds)" in html
    assert "63.3 % lower than 70% 30.00" in html and "SDS pruning · toy" in html
    assert "<img" not in html and "${" not in html
    html = table(open=first)
    rows = re.findall(r'data-testid="row-(sds-\d+)"', html)
    submitted = [job.run for job in swept]
    assert [run for run in rows if run in submitted] == submitted
    assert html.count('<td class="scale">') == 2 and "<i>30.00</i>" in html
    alone = table(q=f"sds-{swept[3].id:04d}")  # a filter that finds one of its runs
    assert f"row-{swept[3].run}" in alone and "sweep-" not in alone.replace("sweep-sds", "")
    assert table(group="none").count('data-testid="row-') == len(queries.jobs()) - 2  # in the queue


@pytest.mark.parametrize("odd", ["'", "<b>", "sds-9999", "9" * 400, HOSTILE, "sds-0001," * 200])
def test_odd_addresses_open_nothing(swept: list[Job], odd: str) -> None:
    assert table(open=odd) == table() == table(group=odd)


def test_means_are_on_one_scale_the_best_first(swept: list[Job]) -> None:
    found = summarized(swept)
    assert [(row.values["pattern"], row.mean, row.n) for row in found.rows] == [
        ("2:4", 11.0, 2),
        ("70%", 30.0, 1),
    ]
    assert found.metric.key == PERPLEXITY and found.seeds == 2 and not found.importance
    low = found.rows[0]
    assert found.place(low.mean - (low.spread or 0)) == 0 and found.place(30.0) == 100
    assert found.states == {"succeeded": 3, "failed": 1}


def rows_of(results: dict[tuple[str, int], float]) -> list[SweepRow]:
    return [
        SweepRow({"pattern": pattern, "segments": size}, "sds", PERPLEXITY, value, None, 1)
        for (pattern, size), value in results.items()
    ]


def test_what_each_setting_explains_adds_up(swept: list[Job]) -> None:
    """Nearly all by the pattern, a little by the size, as much only by both together."""
    rows = rows_of({("2:4", 8): 18.0, ("2:4", 16): 14.0, ("50%", 8): 36.0, ("50%", 16): 36.0})
    found = importance(rows)
    assert list(found) == ["pattern", "segments", "Combinations and seeds"]
    assert found["pattern"] == pytest.approx(400 / 408) and sum(found.values()) == pytest.approx(1)
    shown = SweepSummary(swept, summarized(swept).metric, rows).importance
    assert next(iter(shown)) == "Pattern" and [*shown.values()] == [*found.values()]
    assert importance(rows[:2]) == {} == importance(rows_of(dict.fromkeys([("a", 1), ("b", 2)], 3)))


def store_losses(job: Job, losses: np.ndarray) -> None:
    with writing() as session:
        session.add(mapped(profile_row(job.id, window_losses("sds", losses.tolist()))))


@pytest.mark.parametrize("worse", [False, True])
def test_combinations_no_window_tells_from_the_best_are_named(
    swept: list[Job], worse: bool
) -> None:
    assert summarized(swept).tied == []  # no losses were stored
    text = np.linspace(2.0, 4.0, 8)
    close = text + (0.1 if worse else 0.01 + 0.1 * np.array([1, -1] * 4))
    for job, losses in zip(swept, (text, text, close, close), strict=True):
        store_losses(job, losses)
    assert [row.values["pattern"] for row in summarized(swept).tied] == ([] if worse else ["70%"])


def test_all_runs_are_cancelled_or_resumed_together_by_hosts(swept: list[Job]) -> None:
    first = swept[0].run
    assert re.search(r'data-do="resume-sweep"[^>]* disabled', table(GUEST, open=first))

    def press(deed: str, who: tuple[str, str] = HOST) -> str:
        return str(page.act(pressed(deed, first), asked(who))["message"]["value"])

    assert "may not" in press("resume-sweep", GUEST)
    html = table(open=first)
    assert "resume-sweep" in html and "cancel-sweep" not in html
    assert f"{swept[3].run} is queued again." in press("resume-sweep")
    assert "cancel-sweep" in table(open=first)
    assert f"{swept[3].run} is cancelled." in press("cancel-sweep")
    assert queries.job(swept[3].id).state == State.CANCELLED
    assert "Nothing was cancelled." in press("cancel-sweep")


def test_a_run_leads_to_its_sweep(swept: list[Job]) -> None:
    first = swept[0].run
    head = run.draw(None, asked(id=swept[1].run))["head"]
    assert f'href="runs?q=sweep%3D{first}&amp;open={first}"' in head
    assert "See its sweep" not in run.draw(None, asked(id="sds-0001"))["head"]
    assert {job.run for job in swept} == {
        row.head.run for row in query_runs(TableQuery.from_address(asked(q=f"sweep={first}"))).rows
    }


def test_runs_are_grouped_by_model_and_tag(swept: list[Job]) -> None:
    with writing() as session:
        session.get_one(Job, 1).tags = ["paper", "demo"]
    by_tag = query_runs(TableQuery.from_address(asked(group="tag"))).groups
    assert {group.title for group in by_tag} == {"paper", "demo", "No tag"}
    (tagged,) = query_runs(TableQuery.from_address(asked(q='tag="paper"'))).rows
    assert tagged.head.id == 1
    (model,) = query_runs(TableQuery.from_address(asked(group="model"))).groups
    assert model.title == "toy" and model.query == 'model="toy"' and len(model.shown) <= 8
