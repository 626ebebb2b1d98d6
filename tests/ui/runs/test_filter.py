"""The language of the filter."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ui.lab import job, measured, result
from ui.runs.columns import columns
from ui.runs.rows import RunRow, rows
from ui.runs.view import parse_filter, parse_number


@pytest.fixture(scope="module")
def runs() -> list[RunRow]:
    found = rows(
        [
            job(1, tags=["demo", "paper"], finished_at=600_000),
            job(
                2,
                name="half way",
                state="failed",
                owner="ben",
                kept_stage="sds",
                config={"model": "smollm2-135m", "pattern": "50%", "seed": 7, "control": False},
            ),
            job(3, tags=["demonstration"], note="look at block 2"),
            job(4, state="queued", started_at=None, finished_at=None),
            job(5, kind="gone", config={"model": "toy"}),
        ],
        [
            *measured(1, 12.0, 0.5),
            *measured(2, 15.0, 0.3),
            *measured(3, 30.0, 0.7),
            result(5, "run", "accepted_length", 2.5),
        ],
    )
    sizes = {1: 500_000_000, 3: 900_000_000}
    return [replace(row, size=sizes.get(row.job.id)) for row in found]


def matching(runs: list[RunRow], text: str) -> list[int]:
    return [row.job.id for row in parse_filter(text, columns(runs)).matching(runs)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 2, 3, 4, 5]),
        ("wanda", [1, 3, 4]),
        ("WANDA sds-0001", [1]),
        ("sparsity>0.4", [1, 3]),
        ("sparsity>40%", [1, 3]),
        ("zeros>=0.5 perplexity<20", [1]),
        ("ppl<=15", [1, 2]),
        ("ppl!=15", [1, 3, 4, 5]),
        ("perplexity=30", [3]),
        ("state:failed", [2]),
        ("-state:failed", [1, 3, 4, 5]),
        ("tag:demo", [1]),
        ("-tag:demo", [2, 3, 4, 5]),
        ("tag!=demo", [2, 3, 4, 5]),
        ("kind:sds state:queue", [4]),
        ("kind:pruning", [1, 2, 3, 4]),
        ("model=toy", [1, 3, 4, 5]),
        ("model:toy", [1, 3, 4, 5]),
        ("by:ben", [2]),
        ("2:4", [1, 3, 4]),
        ("pattern=2:4", [1, 3, 4]),
        ('name="half way"', [2]),
        ('"half way"', [2]),
        ('"block 2"', [3]),
        ("note:block", [3]),
        ("seed=7", [2]),
        ("seed>0", [2]),
        ("control:false", [2]),
        ("size>600MB", [3]),
        ("took>5min", [1]),
        ("run:0003", [3]),
        ("accepted_length>2", [5]),
        ("-accepted_length>2", [1, 2, 3, 4]),
    ],
)
def test_what_passes(runs: list[RunRow], text: str, expected: list[int]) -> None:
    assert matching(runs, text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sparsty>0.4", "No column is called 'sparsty'."),
        ("perplexty<3", "No column is called 'perplexty'. Did you mean perplexity?"),
        ("perplexity>many", "Perplexity is a number, 'many' is not."),
        ("took<5parsec", "Duration is a number, '5parsec' is not."),
    ],
)
def test_what_is_not_understood_is_told_and_filters_nothing(
    runs: list[RunRow], text: str, problem: str
) -> None:
    found = parse_filter(text, columns(runs))
    assert list(found.problems) == [problem]
    assert len(found.matching(runs)) == len(runs)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.4", 0.4),
        ("40%", 0.4),
        ("2h", 7200),
        ("1d", 86400),
        ("500MB", 5e8),
        ("-1e-3", -1e-3),
        ("5 min", 300),
        ("", None),
        ("x", None),
        ("4 apples", None),
        ("1.2.3", None),
    ],
)
def test_numbers_carry_units(text: str, value: float | None) -> None:
    assert parse_number(text) == (None if value is None else pytest.approx(value))


@given(st.text(max_size=60))
def test_any_text_is_a_filter(runs: list[RunRow], text: str) -> None:
    found = parse_filter(text, columns(runs))
    assert {row.job.id for row in found.matching(runs)} <= {1, 2, 3, 4, 5}


@given(st.sampled_from(["ppl<20", "tag:demo", "wanda", "state:failed", "seed=7"]))
def test_a_term_and_its_turn_part_the_runs(runs: list[RunRow], term: str) -> None:
    both = matching(runs, term) + matching(runs, f"-{term}")
    assert sorted(both) == [1, 2, 3, 4, 5]
