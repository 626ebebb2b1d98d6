"""The table of runs: columns from the data, sorting, filter, export, and texts that do nothing."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.store.tables import Job, Result
from ui.components import run_table
from ui.components.run_table import AGE, Column, Row

HOSTILE = "${document.body.dataset.x=1}<img src=x onerror=alert(1)>"


def job(number: int, **values: object) -> Job:
    row = {
        "id": number, "kind": "sds", "name": f"run {number}", "owner": "mira", "state": "succeeded",
        "config": {"model": "toy", "pattern": "2:4", "base": "wanda"}, "created_at": number * 1000,
        "started_at": 0, "finished_at": 60_000,
    }  # fmt: skip
    return Job(**(row | values))


def result(number: int, stage: str, metric: str, value: float, **details: object) -> Result:
    return Result(job_id=number, stage=stage, metric=metric, value=value, details=details)


def measured(number: int, dense: float, final: float, kept: str = "sds") -> list[Result]:
    return [
        result(number, "dense", "perplexity", dense),
        result(number, "sds", "perplexity", final),
        result(number, "control", "perplexity", final + 1),
        result(number, "run", "kept", 1.0, kept=kept),
        result(number, "run", "zero_share", 0.5),
        result(number, "run", "work", 1e12),
        result(number, "run", "seconds/redense", 3.0),
    ]


@pytest.fixture
def rows() -> list[Row]:
    return run_table.rows(
        [job(1), job(2, name=HOSTILE), job(3, state="failed")],
        [*measured(1, 10.0, 12.0), *measured(2, 10.0, 11.0, kept="control")],
    )


def named(columns: list[Column], key: str) -> Column:
    return next(c for c in columns if c.key == key)


def test_the_columns_come_from_what_the_runs_measured(rows: list[Row]) -> None:
    keys = [c.key for c in run_table.columns(rows)]
    assert {"dense", "ppl", "change", "zero_share"} < set(keys)
    assert not {"work", "kept", "seconds/redense"} & set(keys)
    plain = [c.key for c in run_table.columns(rows[2:])]
    assert "ppl" not in plain and "run" in plain


def test_another_kinds_figures_get_a_column_without_a_change_here() -> None:
    rows = run_table.rows([job(1, kind="gone")], [result(1, "run", "tokens_per_s", 41.0)])
    column = named(run_table.columns(rows), "tokens_per_s")
    assert column.title == "Tokens per s"
    assert column.value(rows[0]) == 41.0


def test_the_final_perplexity_is_that_of_the_kept_stage(rows: list[Row]) -> None:
    columns = run_table.columns(rows)
    final, change = named(columns, "ppl"), named(columns, "change")
    assert [final.value(row) for row in rows] == [12.0, 12.0, None]
    assert change.value(rows[0]) == pytest.approx(0.2)
    assert change.html(rows[0]) == "+20.0 %"


def test_the_setting_is_what_the_method_was_told(rows: list[Row]) -> None:
    assert named(run_table.columns(rows), "choices").value(rows[0]) == "2:4 · wanda"


@given(st.lists(st.one_of(st.none(), st.just(float("nan")), st.floats(-1e6, 1e6)), max_size=12))
def test_sorting_keeps_every_row_and_puts_missing_values_last(values: list[float | None]) -> None:
    rows = run_table.rows([job(i) for i in range(len(values))], [])
    by = Column("v", "V", lambda row: values[row.job.id], lambda row: "")
    for descending in (False, True):
        order = [row.job.id for row in run_table.arranged(rows, by, descending)]
        assert sorted(order) == list(range(len(values)))
        found = [values[i] for i in order]
        real = [v for v in found if v is not None and v == v]
        assert found[: len(real)] == real
        assert real == sorted(real, reverse=descending)


def test_the_filter_wants_every_word(rows: list[Row]) -> None:
    assert [r.job.id for r in run_table.filtered(rows, "WANDA sds-0001")] == [1]
    assert [r.job.id for r in run_table.filtered(rows, "failed")] == [3]
    assert [r.job.id for r in run_table.filtered(rows, "2:4 toy")] == [1, 2, 3]
    assert run_table.filtered(rows, "magnitude") == []


def test_one_head_says_how_the_table_is_sorted(rows: list[Row]) -> None:
    html = run_table.html(rows, run_table.columns(rows), AGE, True)
    assert re.findall(r'aria-sort="(\w+)"', html).count("descending") == 1
    assert "ascending" not in re.findall(r'aria-sort="(\w+)"', html)
    assert html.count('class="sort"') == len(run_table.columns(rows))
    assert 'href="run?id=sds-0001"' in html


def test_a_name_is_text_in_the_table(rows: list[Row]) -> None:
    html = run_table.html(rows, run_table.columns(rows), AGE, True)
    assert "<img" not in html
    assert "${" not in html
    assert "onerror=alert(1)" in html


def test_the_export_has_the_same_rows_columns_and_full_figures(rows: list[Row]) -> None:
    columns = run_table.columns(rows)
    head, *body = csv.reader(io.StringIO(run_table.to_csv(rows, columns)))
    assert head == ["Added (UTC)" if c.key == "age" else c.title for c in columns]
    assert [line[0] for line in body] == ["sds-0001", "sds-0002", "sds-0003"]
    assert body[1][head.index("Name")] == HOSTILE
    assert float(body[0][head.index("Final")]) == 12.0
    assert body[2][head.index("Final")] == ""


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_name_is_no_formula_in_a_spreadsheet(name: str) -> None:
    rows = run_table.rows([job(1, name=name)], [])
    _, line = csv.reader(io.StringIO(run_table.to_csv(rows, run_table.columns(rows))))
    assert line[1] == f"'{name}"


def test_a_table_without_rows_is_a_head() -> None:
    assert run_table.html([], run_table.columns([]), AGE, True).count("<tr") == 1
