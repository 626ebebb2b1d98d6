"""Quality, size and speed of a run's model: words, charts, samples, and the way to have them."""

from typing import Any

import pytest

from backend.settings import Settings
from backend.store import queries
from backend.store.tables import Result
from jobs.evaluation.kind import DENSE, MODEL
from jobs.metrics import LINEAR_BYTES, SPEED_UP, TOKENS_PER_SECOND
from tests.ui.lab import job, measured, model_folder, result, store
from ui.pages.run.outcome import findings, samples


def sample(text: str) -> list[dict[str, Any]]:
    return [{"prompt": "Once", "text": text, "tokens": [1]}]


def evaluated(number: int) -> list[Result]:
    """The figures of an evaluation."""
    return [
        result(number, DENSE, "perplexity", 4.0),
        result(number, MODEL, "perplexity", 5.0),
        result(number, MODEL, "zero_share", 0.5),
        result(number, MODEL, f"{LINEAR_BYTES}/dense", 2e6),
        result(number, MODEL, f"{LINEAR_BYTES}/2:4", 1.125e6),
        result(number, MODEL, f"{LINEAR_BYTES}/bitmask", 1.15e6),
        result(number, DENSE, TOKENS_PER_SECOND, 20.0, lowest=19.0, highest=21.0),
        result(number, MODEL, TOKENS_PER_SECOND, 20.5, lowest=19.5, highest=21.5),
        result(number, MODEL, SPEED_UP, 1.02),
        result(number, DENSE, "greedy_agreement", 1.0, samples=sample("the cat sat")),
        result(number, MODEL, "greedy_agreement", 0.5, samples=sample("the cat ran")),
    ]


@pytest.fixture
def lab(tables: Settings) -> Settings:
    return tables


def evaluation(number: int, of: str, **values: Any) -> Any:
    ended = {"kept_stage": MODEL}
    return job(number, kind="evaluation", config={"model": of}, **(ended | values))


def test_a_run_shows_what_its_evaluation_found(lab: Settings) -> None:
    store(job(1), model_folder(1, 9), *measured(1, 5.0), evaluation(2, "sds-0001"), *evaluated(2))
    for run in (1, 2):  # the run, and the evaluation itself
        words, sampled = findings(queries.job(run))
        texts = samples(sampled)
        assert "Perplexity is 25.0 % higher than the dense model." in words
        assert "as 2:4, the linear layers take 56 % of dense" in words
        assert "no speed-up here" in words
        assert "the cat <mark>sat</mark>" in texts and "the cat <mark>ran</mark>" in texts
    assert "evaluation-0002" in findings(queries.job(1))[0]


def test_what_was_not_measured_can_be_asked_for_where_there_is_a_model(lab: Settings) -> None:
    store(job(1), model_folder(1, 9), job(2))
    words, sampled = findings(queries.job(1))
    assert 'href="new-run?kind=evaluation&amp;model=sds-0001"' in words
    assert samples(sampled) == "" == findings(queries.job(2))[0]
    store(evaluation(3, "sds-0001", state="running"))
    assert "as they are measured" in findings(queries.job(1))[0]
