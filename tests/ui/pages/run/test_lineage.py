"""From the first model to a run, to what started from it, and to what repeats it."""

from backend.settings import Settings
from backend.store import queries
from backend.store.migrate import upgrade
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from tests.ui.conftest import HOSTILE, job_row, result_rows
from tests.ui.lab import TEXT, job, measured, result, store
from ui.pages.run.details import ancestors, lineage_card, reproduction_card
from ui.pages.run.outcome import finding, outcome
from ui.runs.results import RunResults, kind_of


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


def test_a_run_of_a_pruned_model_is_compared_with_its_source_and_with_dense(
    current: Settings,
) -> None:
    chain()
    figures = {"dense": 25.0, "gptq": 40.0, "dlqat": 30.0}
    rows = [*(result(2, s, "perplexity", v, **TEXT) for s, v in figures.items())]
    store(*rows, result(2, "dlqat", "bits_per_weight", 3.25))
    run = queries.job("dlqat-0002")
    results = RunResults(kind_of(run), queries.results([2]), run)
    assert results.label("dense") == "Source (2:4 pruned)" and results.dense == 10.0
    compared = {"GPTQ": 40.0, "Source (2:4 pruned)": 25.0, "Dense": 10.0}
    assert results.rivals == compared
    said = "DL-QAT reaches perplexity 30.0, 25.0 % lower than GPTQ at 40.0; "
    assert finding(run, results) == f"{said}its source 25.0; dense 10.0."
    html = outcome(run, results, 0)
    assert "perplexity 30.00 instead of 10.00" in html and "20.0 % higher than that of" in html
    with writing() as session:  # another text
        session.get_one(Result, (2, "dense", "perplexity", "")).n = 5
    other = RunResults(kind_of(run), queries.results([2]), run)
    assert other.dense is None and "dense" not in finding(run, other)


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
