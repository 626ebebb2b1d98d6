"""From the first model to a run, to what started from it, and to what repeats it."""

from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from tests.ui.conftest import HOSTILE, job_row, result_rows
from tests.ui.lab import job, measured, store
from ui.pages.run.details import ancestors, lineage_card, reproduction_card


def chain() -> None:
    """toy -> sds-0001 -> dlqat-0002 -> amphista-0003; a benchmark with the drafter; and others."""
    upgrade()
    store(
        job(1),
        *measured(1, 12.5),
        job(2, kind="dlqat", config={"model": "sds-0001", "bits": 3}, kept_stage="dlqat"),
        job(3, kind="amphista", config={"model": "dlqat-0002"}),
        job(4, kind="benchmark", config={"model": "dlqat-0002", "drafters": "amphista-0003"}),
        job(5, kind="evaluation", config={"model": "sds-0010"}, state="running"),
        job(6, name="sds-0001", note="after sds-0001"),
    )


def test_ancestors_and_what_started_from_a_run_are_found(current: Settings) -> None:
    chain()
    found = ancestors(queries.job("amphista-0003"))
    assert [x if isinstance(x, str) else x.run for x in found] == ["toy", "sds-0001", "dlqat-0002"]
    assert ancestors(queries.job("sds-0001")) == ["toy"]
    assert ancestors(queries.job("evaluation-0005")) == ["sds-0010"]  # gone, but named
    assert [x.run for x in queries.runs_from("sds-0001", 9)] == ["dlqat-0002"]
    assert [x.run for x in queries.runs_from("dlqat-0002", 9)] == [
        "benchmark-0004",
        "amphista-0003",
    ]
    assert [x.run for x in queries.runs_from("dlqat-0002", 1)] == ["benchmark-0004"]
    assert [x.run for x in queries.runs_from("amphista-0003", 9)] == ["benchmark-0004"]


def repeated(**values: object) -> None:
    """sds-0006 repeats sds-0001 with the same figures."""
    with writing() as session:
        session.add(
            job_row(
                6, "succeeded", **{"parent": 1, "finished_at": 2, "kept_stage": "sds", **values}
            )
        )
        session.flush()
        session.add_all(result_rows(6))


def test_both_runs_say_that_they_are_equal(seeded: Settings) -> None:
    repeated()
    new, old = reproduction_card(queries.job(6)), reproduction_card(queries.job(1))
    assert "equal" in new and 'href="run?id=sds-0001"' in new and "<table" not in new
    assert "equal" in old and 'href="run?id=sds-0006"' in old


def test_differences_are_tabled_and_text_stays_text(seeded: Settings) -> None:
    repeated(environment={"weights_sha256": "ab" * 32, "host": HOSTILE})
    with writing() as session:
        session.get_one(Result, (6, "sds", "perplexity", "")).value = 6.25
    html = reproduction_card(queries.job(6))
    assert "sds-0001 and sds-0006 differ" in html and "6.250" in html and "abababababab…" in html
    assert "onerror=" in html and "<img" not in html and "${" not in html


def test_a_replay_that_waits_is_open_and_a_single_run_has_no_card(seeded: Settings) -> None:
    assert reproduction_card(queries.job(1)) == ""
    repeated()
    with writing() as session:
        session.get_one(Job, 6).state = State.QUEUED
    html = reproduction_card(queries.job(6))
    assert "open" in html and "after both have succeeded" in html and "<table" not in html


def test_the_card_links_every_run_and_says_what_it_changed(current: Settings) -> None:
    chain()
    html = lineage_card(queries.job("dlqat-0002"))
    places = [
        html.index(name) for name in ("<b>toy</b>", "sds-0001", "dlqat-0002", "benchmark-0004")
    ]
    assert places == sorted(places)
    assert 'href="run?id=sds-0001"' in html and "perplexity 12.5" in html and "2:4" in html
    assert html.index('aria-current="true"') < html.index("dlqat-0002")
    assert lineage_card(queries.job("sds-0006")) == ""  # stands alone
    store(job(7, kind="dlqat", config={"model": "dlqat-0007"}))  # no circle is followed
    assert "dlqat-0007" in lineage_card(queries.job("dlqat-0007"))
