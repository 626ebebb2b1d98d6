"""Tests of evaluation jobs: measurements, summaries and rejected configs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from backend.decoding.benchmark import Decoder
from backend.evaluation.zero_shot import questions, score_endings
from backend.metric_key import MetricKey
from backend.models.loading import load
from backend.models.sources.catalog import inspect
from backend.queue import service
from backend.reporter import SilentReporter
from backend.store import queries
from backend.store.session import writing
from backend.store.states import State
from backend.store.tables import Job, Result
from backend.text.slices import evaluation_slice
from jobs.evaluation.kind import (
    DENSE,
    MODEL,
    TIMED_TOKENS,
    EvaluationJob,
    format_bytes,
    load_samples,
    memory_bytes,
    size_and_speed,
)
from jobs.evaluation.quality import ENDINGS_ACCURACY, Quality, decoders_of, record_decoding
from jobs.fields.text import SAMPLE_PROMPTS
from jobs.metrics import (
    BITS_PER_BYTE,
    GREEDY_AGREEMENT,
    KL_TO_DENSE,
    PERPLEXITY,
    SPEED_UP,
    TOKENS_PER_SECOND,
    TOP1_AGREEMENT,
    ZERO_SHARE,
)
from tests.jobs.kinds.test_sds import SMALL
from tests.queue.conftest import HOST, Wait, succeeded

TINY = {"context": 64, "windows": 8, "threads": 1, "sample_tokens": 8}

Rows = dict[tuple[str, MetricKey], Result]


def figures(run: int) -> Rows:
    return {(row.stage, row.metric): row for row in queries.results([run])}


def resumed_without(wait: Wait, run: int, metric: MetricKey) -> Rows:
    """Return the figures of a run that was killed before it recorded one of them, and resumed."""
    with writing() as session:
        session.delete(session.get_one(Result, (run, MODEL, metric.family, metric.series)))
        session.get_one(Job, run).state = State.FAILED
    service.resume([run], HOST)
    assert wait(run, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED
    return figures(run)


def test_a_pruned_run_beside_its_dense_model_and_a_second_attempt(wait: Wait) -> None:
    pruned = succeeded(wait, "sds", {**SMALL, "control": False, "adjust": "off"})
    job = succeeded(wait, "evaluation", {"model": pruned.run, **TINY})
    rows, pruned_rows = figures(job.id), figures(pruned.id)
    kept_stage = queries.job(pruned.id).kept_stage
    # the same text, the same figure
    for own_stage, stage in ((DENSE, "dense"), (MODEL, kept_stage)):
        expected = pruned_rows[stage, PERPLEXITY].value
        assert rows[own_stage, PERPLEXITY].value == pytest.approx(expected, rel=5e-4)  # 16 bits, 32
        assert rows[own_stage, PERPLEXITY].details["decoder"].startswith("native, bfloat16")
    assert rows[MODEL, ZERO_SHARE].value == pytest.approx(0.5)
    assert queries.job(job.id).environment["base"] == "toy"
    sizes = format_bytes(rows)
    assert list(sizes) == ["dense", "2:4", "bitmask"] and sizes["2:4"] / sizes["dense"] == 9 / 16
    assert rows[MODEL, KL_TO_DENSE].value > 0 and 0 < rows[MODEL, TOP1_AGREEMENT].value < 1
    assert (DENSE, KL_TO_DENSE) not in rows
    prompts = [[s["prompt"] for s in load_samples(job.run, stage)] for stage in (DENSE, MODEL)]
    assert prompts[0] == prompts[1] and len(prompts[0]) == SAMPLE_PROMPTS
    assert rows[MODEL, TOKENS_PER_SECOND].value > 0 and rows[DENSE, TOKENS_PER_SECOND].value > 0
    assert "as 2:4, the linear layers take 56 % of dense" in " ".join(size_and_speed(rows))

    again = resumed_without(wait, job.id, KL_TO_DENSE)
    assert again.keys() == rows.keys() and (MODEL, SPEED_UP) in again
    for metric in (KL_TO_DENSE, TOKENS_PER_SECOND):  # which is not measured again
        assert again[MODEL, metric].value == rows[MODEL, metric].value


def test_a_model_is_equal_to_itself_and_chooses_endings_with_both(wait: Wait) -> None:
    few = {"context": 256, "windows": 2, "threads": 1, "sample_tokens": 8, "tasks": "Endings"}
    job = succeeded(wait, "evaluation", {"model": "toy", "dense": "toy", "speed": False, **few})
    rows, loaded = figures(job.id), load("toy")
    assert rows[MODEL, KL_TO_DENSE].value == pytest.approx(0, abs=1e-6)
    assert rows[MODEL, TOP1_AGREEMENT].value == rows[MODEL, GREEDY_AGREEMENT].value == 1
    assert rows[MODEL, PERPLEXITY].value == rows[DENSE, PERPLEXITY].value
    assert (MODEL, TOKENS_PER_SECOND) not in rows
    assert "too few zeros for sparse formats" in size_and_speed(rows)[0]
    text = evaluation_slice("toystories", loaded.tokenizer, 2, 256)
    expected = score_endings(loaded.model.eval(), questions(text), 4, SilentReporter())
    for stage in (DENSE, MODEL):
        assert rows[stage, ENDINGS_ACCURACY].value == expected.accuracy
        assert rows[stage, ENDINGS_ACCURACY].n == len(expected.correct) == 8
    again = resumed_without(wait, job.id, ENDINGS_ACCURACY)
    assert again.keys() == rows.keys()
    assert again[MODEL, ENDINGS_ACCURACY].value == expected.accuracy


def test_a_model_alone_has_nothing_to_be_compared_with(wait: Wait) -> None:
    job = succeeded(wait, "evaluation", {"model": "toy", **TINY})
    rows = figures(job.id)
    assert {stage for stage, _ in rows} == {MODEL}
    assert (MODEL, KL_TO_DENSE) not in rows and (MODEL, SPEED_UP) not in rows
    assert rows[MODEL, BITS_PER_BYTE].value > 0 and rows[MODEL, TOKENS_PER_SECOND].n == 5


def row(stage: str, metric: MetricKey, value: float, **details: object) -> Result:
    return Result(job_id=1, stage=stage, family=metric.family, value=value, details=details)


@pytest.mark.parametrize(
    ("up", "stderr", "words"),
    [
        (1.04, 0.001, "no speed-up here"),
        (1.2, 0.2, "no speed-up here"),
        (0.9, 0.2, "no speed-up here"),
        (1.6, 0.01, "1.60\u00a0× the dense speed"),
        (0.55, 0.1, "slower than the dense model here, 0.55\u00a0×"),
    ],
)
def test_a_speed_up_is_believed_only_beyond_what_repeats_differ_by(
    up: float, stderr: float, words: str
) -> None:
    span = {"lowest": 19.0, "highest": 22.0}
    rows = {
        (stage, TOKENS_PER_SECOND): row(stage, TOKENS_PER_SECOND, 20.0, **span)
        for stage in (MODEL, DENSE)
    }
    rows[MODEL, SPEED_UP] = row(MODEL, SPEED_UP, up)
    rows[MODEL, SPEED_UP].stderr = stderr
    sentence = size_and_speed(rows)[0]
    assert words in sentence and "20 tokens/s (19 to 22)" in sentence


def test_what_does_not_fit_is_read_block_by_block(queue: Path) -> None:
    facts = inspect("smollm2-135m")
    config = EvaluationJob()
    streamed, needed = memory_bytes(config, facts, 2, 64 * 2**30)
    assert not streamed and needed["weights"] == 2 * 4 * facts.parameters
    streamed, less = memory_bytes(config, facts, 2, 1 * 2**30)
    assert streamed and less["weights"] < needed["weights"] / 2


def decoded(decoder: Decoder) -> list[int]:
    return [token for step in decoder.decode([5, 9, 7], 5, ()) for token in step.tokens]


def test_models_are_timed_in_the_same_way() -> None:
    """Native decoding is used only if it supports all models; otherwise the run logs the reason."""
    bfloat16, float32 = (
        load("toy", dtype=dtype).model for dtype in (torch.bfloat16, torch.float32)
    )
    decoders, name = decoders_of([bfloat16, bfloat16])
    assert name.startswith("native")
    assert len(decoded(decoders[0])) == 5 and decoded(decoders[0]) == decoded(decoders[1])
    decoders, name = decoders_of([bfloat16, float32])
    assert name.startswith("PyTorch; ") and "float32" in name
    assert [decoder._target.native for decoder in decoders] == [None, None]  # type: ignore[union-attr]
    assert len(decoded(decoders[1])) == 5


def test_a_model_that_cannot_verify_trees_is_decoded_as_transformers_does() -> None:
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2))
    (decoder,), name = decoders_of([bloom.eval()])
    assert name == "transformers"
    assert len(decoded(decoder)) == 5


def test_decoding_is_not_timed_where_the_context_is_too_short() -> None:
    messages: list[str] = []
    context: Any = SimpleNamespace(log=messages.append)
    toy = load("toy").model
    record_decoding({MODEL: toy}, [5, 9], TIMED_TOKENS + 1, context, SilentReporter())
    assert "not timed" in messages[0] and len(messages) == 1


class KilledError(Exception):
    """Simulates the end of a process before a further record."""


def recorder(kept: list[str], most: int) -> Any:
    """Return a context that keeps names of records until the process is killed."""

    def keep(name: str) -> None:
        if len(kept) == most:
            raise KilledError
        kept.append(name)

    return SimpleNamespace(
        profile=lambda profile: keep(profile.name),
        result=lambda stage, metric, value, **_: keep(str(metric)),
        has_result=lambda stage, metric: str(metric) in kept,
        log=lambda text: None,
    )


def quality(context: Any, monkeypatch: pytest.MonkeyPatch) -> Quality:
    """Return the measurements of a stage with precomputed figures."""
    measured = SimpleNamespace(value=2.0, stderr=0.1, bits_per_byte=1.0, tokens=8, windows=[1.0])
    compared = SimpleNamespace(agreement=0.9, agreement_stderr=0.1, kl=0.1, kl_stderr=0.1, tokens=8)
    observer = SimpleNamespace(result=lambda: compared)
    for name, replacement in (
        ("perplexity", lambda *_: measured),
        ("text_facts", lambda _: {}),
        ("DivergenceObserver", lambda *_: observer),
    ):
        monkeypatch.setattr(f"jobs.evaluation.quality.{name}", replacement)
    measurements = Quality.__new__(Quality)
    vars(measurements).update(
        _divergence=True,
        _loaded=SimpleNamespace(model=None),
        _text=None,
        _context=context,
        _batch=1,
        _labels={},
        _new_store=list,
        _reference=None,
        _decoder="",
        _rounded={},
        _read=lambda: None,
        _comparable=lambda _: True,
    )
    return measurements


@pytest.mark.parametrize("role", ["", "kept"])
def test_a_kill_between_two_figures_loses_none(monkeypatch: pytest.MonkeyPatch, role: Any) -> None:
    complete: list[str] = []
    quality(recorder(complete, 99), monkeypatch)._measure_text("sds", role, None)  # type: ignore[arg-type]
    assert "window_losses" in complete and ("kl_to_dense" in complete) == bool(role)
    for most in range(len(complete)):
        kept: list[str] = []
        measurements = quality(recorder(kept, most), monkeypatch)
        with pytest.raises(KilledError):
            measurements._measure_text("sds", role, None)  # type: ignore[arg-type]
        assert measurements._text_missing("sds", role), f"killed behind {kept}"


@pytest.mark.parametrize("in_other", [False, True])
def test_models_in_two_decoders_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, in_other: bool
) -> None:
    complete: list[str] = []
    measurements = quality(recorder(complete, 99), monkeypatch)
    monkeypatch.setattr("jobs.evaluation.quality.outside_blocks", lambda _: "the same")
    vars(measurements)["_reference"] = SimpleNamespace(native=in_other, outside="the same")
    del vars(measurements)["_comparable"]
    measurements._measure_text("sds", "kept", None)  # type: ignore[arg-type]  # in PyTorch
    assert "perplexity" in complete and ("kl_to_dense" in complete) == (not in_other)
