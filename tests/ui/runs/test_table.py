"""The table of runs: columns from the data, sorting, baseline and pins, export, and texts that do
nothing."""

import csv
import io
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.metric_key import MetricKey
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import Event, Job
from jobs.metrics import PERPLEXITY, metric
from tests.ui.lab import OTHER, job, measured, model_folder, result, store
from tests.ui.pages.workbench.profiles import profile_rows
from ui.pages.runs.page import HTML
from ui.runs import rows as run_rows
from ui.runs import view as table
from ui.runs.columns import AGE, Column, columns, visible_columns
from ui.runs.html import run_description
from ui.runs.results import format_stderr, format_value, setting_summary
from ui.runs.rows import RunRow, all_rows, chosen, rows
from ui.runs.view import RunFilter, TableQuery, TableResult

HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=alert(1)>"


@pytest.fixture
def shown() -> list[RunRow]:
    return rows(
        [job(1), job(2, name=HOSTILE, kept_stage="control"), job(3, state="failed")],
        [*measured(1, 12.0), *measured(2, 11.0, text=OTHER)],
    )


def html(
    shown: list[RunRow],
    base: RunRow | None = None,
    pinned: Sequence[RunRow] = (),
    selected: Sequence[str] = (),
) -> str:
    """The table of these rows, in descending order of age."""
    known = columns(shown)
    query = TableQuery("", "age", True, 1, (), "", (), tuple(selected))
    return str(
        HTML.runs(
            TableResult(
                query,
                known,
                visible_columns((), known),
                known["age"],
                RunFilter((), ()),
                shown,
                len(shown),
                base,
                [*pinned],
                chosen(shown, selected),
            ),
            lambda _: (),
            run_description,
            {},
        )
    )


# columns ------------------------------------------------------------------------------------------


def test_the_columns_come_from_what_the_runs_measured(shown: list[RunRow]) -> None:
    keys = columns(shown).keys()
    assert {"dense", "perplexity", "change", "zero_share", "seed"} < keys
    assert not {"flops", "kept_stage", "redense"} & keys
    plain = columns(shown[2:]).keys()
    assert "perplexity" not in plain and "run" in plain


def test_the_final_perplexity_is_that_of_the_kept_stage(shown: list[RunRow]) -> None:
    known = columns(shown)
    assert [known["perplexity"].value(row) for row in shown] == [12.0, 12.0, None]
    assert known["change"].value(shown[0]) == pytest.approx(0.2)
    assert known["change"].html(shown[0]) == "+20.0\u00a0%"


def test_a_run_that_ended_without_keeping_a_stage_has_what_it_measured_once() -> None:
    done = job(1, kept_stage=None), job(1, kept_stage=None, state="running")
    heads = [result(1, f"head-{k}", "top1", 0.5) for k in (1, 2)]
    one, two = (
        rows([run], [result(1, "drafter", "accepted_length", 2.5), *heads])[0].figures
        for run in done
    )
    assert one.final(MetricKey("accepted_length")) == 2.5 and one.final(MetricKey("top1")) is None
    assert two.final(MetricKey("accepted_length")) is None  # it has not ended


def test_a_number_in_the_setting_says_what_it_counts_and_defaults_are_left_out() -> None:
    config = {"bits": 3, "group_size": 32, "rank": 8, "steps": 40, "training_text": "same"}
    made = job(9, kind="dlqat", config={"model": "toy", "format": "gptq", **config})
    assert setting_summary(made) == ["3 bits", "group size 32", "rank 8", "gptq"]
    made.config = {**made.config, "seed": 2}
    assert setting_summary(made)[-1] == "seed 2"  # tells the runs of a sweep apart


def test_runs_that_compress_nothing_have_a_result_too(tables: Settings) -> None:
    profiled, figures = profile_rows(3)
    store(
        job(1, kind="amphista", kept_stage=None),
        profiled,
        *figures,
        job(4, kind="amphista", state="failed"),
        result(1, "drafter", "accepted_length", 2.5),
    )
    shown = all_rows()
    told = columns(shown)["result"]
    assert [told.value(row) for row in shown] == [
        "",
        "Block 0, down_proj breaks first",
        "2.50 tokens per step instead of 1, predicted on held-out answers",
    ]


def test_chosen_columns_keep_the_order_of_the_table_and_the_run_leads(shown: list[RunRow]) -> None:
    known = columns(shown)
    assert [c.key for c in visible_columns(["seed", "ppl", "nonsense"], known)] == [
        "run",
        "perplexity",
        "seed",
    ]
    assert visible_columns(["nonsense"], known) == visible_columns((), known)


# order --------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.just(float("nan")), st.floats(-1e6, 1e6)), max_size=12))
def test_sorting_keeps_every_row_and_puts_missing_values_last(values: list[float | None]) -> None:
    made = rows([job(i) for i in range(len(values))], [])
    by = Column("v", "V", lambda row: values[row.job.id], lambda row: "", lambda row: None)
    for descending in (False, True):
        order = [row.job.id for row in table.sorted_rows(made, by, descending)]
        assert sorted(order) == list(range(len(values)))
        found = [values[i] for i in order]
        real = [v for v in found if v is not None and v == v]
        assert found[: len(real)] == real
        assert real == sorted(real, reverse=descending)


def test_words_and_numbers_in_one_column_can_be_sorted() -> None:
    made = rows([job(i, config={"alpha": v}) for i, v in enumerate(["auto", 3, None, 1])], [])
    by = columns(made)["alpha"]
    assert [r.job.id for r in table.sorted_rows(made, by, False)] == [3, 1, 0, 2]


# files --------------------------------------------------------------------------------------------


def test_the_export_has_the_same_rows_columns_and_full_figures(shown: list[RunRow]) -> None:
    of = visible_columns(["run", "name", "ppl", "age"], columns(shown))
    head, *body = csv.reader(io.StringIO(table.to_csv(shown, of)))
    assert head == ["run", "name", "perplexity", "added_utc"]
    assert [line[0] for line in body] == ["sds-0001", "sds-0002", "sds-0003"]
    assert body[1][1] == HOSTILE
    assert float(body[0][2]) == 12.0 and body[2][2] == ""
    assert json.loads(table.to_json(shown, of))[0] == {
        "run": "sds-0001",
        "name": "run 1",
        "perplexity": 12.0,
        "added": "1970-01-01T00:00:01+00:00",
    }


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_name_is_no_formula_in_a_spreadsheet(name: str) -> None:
    made = rows([job(1, name=name)], [])
    known = columns(made)
    _, line = csv.reader(io.StringIO(table.to_csv(made, [known["run"], known["name"], AGE])))
    assert line[1] == f"'{name}"


# all of them --------------------------------------------------------------------------------------


def test_every_run_is_read_with_figures_and_anew_when_one_is_added(
    tables: Settings,
) -> None:
    store(job(1), job(2, state="running"), *measured(1, 12.0), model_folder(1, 5000))
    two, one = all_rows()
    assert (one.size, two.size) == (5000, None)
    assert one.figures.final() == 12.0 and one.figures.value("control", PERPLEXITY) == 13.0
    assert not one.figures.seconds  # step times are for the page of a run
    store(*measured(2, 9.0))  # it runs, so it may record figures without an event
    assert all_rows()[0].figures.value("sds", PERPLEXITY) == 9.0
    with writing() as session:
        session.get_one(Job, 2).state = "succeeded"
        session.get_one(Job, 1).tags = ["late"]
        session.add(Event(job_id=2, at=0, type="succeeded", actor="supervisor"))
    assert [row.job.state for row in all_rows()] == ["succeeded", "succeeded"]
    assert all_rows()[1].job.tags == []  # nothing has happened to it: it is not read again
    assert [r.job.id for r in chosen(all_rows(), ["sds-0002", "sds-9999", "sds-0002"])] == [2]


def test_jobs_and_figures_are_read_when_the_first_of_a_batch_is_asked_for(
    tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = result(5, "sds", "perplexity", 1.0)
    odd.stage = "a\x1eb\x1f"  # of a damaged row: stage and name are told apart by such signs
    store(*[job(n) for n in range(1, 6)], *measured(3, 9.0), *measured(4, 8.0), odd)
    asked, read, read_jobs = list[list[int]](), queries.results, queries.jobs_by_id
    monkeypatch.setattr(run_rows, "BATCH_RUNS", 2)
    monkeypatch.setattr(queries, "results", lambda ids: [asked.append([*ids]), read(ids)][1])
    monkeypatch.setattr(
        queries, "jobs_by_id", lambda ids: [asked.append([*ids]), read_jobs(ids)][1]
    )
    every = all_rows()
    known = columns(every)
    assert not asked and set(columns(rows([job(4)], read([4])))) <= set(known)
    assert [row.head.id for row in table.sorted_rows(every, known["age"], True)] == [5, 4, 3, 2, 1]
    assert "sds-0004" in every[1].search_names and not asked and every[1].job.run == "sds-0004"
    assert every[1].figures.final() == 8.0 and every[2].figures.final() == 9.0
    assert asked == [[3, 4], [3, 4]] and every[0].figures.final() is None


def test_an_example_whose_row_is_deleted_is_shown_no_more(tables: Settings) -> None:
    store(job(1), job(-1))
    assert [row.job.run for row in all_rows()] == ["sds-0001", "sds-example"]
    with writing() as session:
        session.delete(session.get_one(Job, -1))
    assert [row.job.run for row in all_rows()] == ["sds-0001"]


def test_the_disk_space_of_runs_sorts_them() -> None:
    sizes = {1: 2_000_000, 2: None, 3: 5_000_000}
    found = rows([job(n, disk_bytes=size) for n, size in sizes.items()], [])
    disk = columns(found)["disk"]
    assert [row.job.id for row in table.sorted_rows(found, disk, True)] == [3, 1, 2]
    assert [str(disk.html(row)) for row in found] == ["2.0\u00a0MB", "–", "5.0\u00a0MB"]


@pytest.mark.parametrize(
    ("name", "value", "stderr", "written"),
    [
        ("accuracy/endings", 0.5573, 0.0359, ("55.73", "3.6")),
        ("top1_agreement", 0.9468, 0.0039, ("94.68", "0.39")),
        ("perplexity", 19.702, 1.16, ("19.70", "1.2")),
        ("perplexity", 19.702, None, ("19.70", "")),
    ],
)
def test_an_error_is_in_the_unit_of_its_value(
    name: str, value: float, stderr: float | None, written: tuple[str, str]
) -> None:
    shown = metric(MetricKey.parse(name))
    assert (format_value(shown, value), format_stderr(shown, stderr)) == written
