"""Transcripts of answers: with and without a drafter, sampled, and as JSON rows."""

from pathlib import Path

import pytest

from backend.decoding.limits import LOOKUP_HEAD
from backend.errors import SlimscopeError
from backend.models.loading import load
from backend.queue.artifacts import run_folder
from jobs.fields.drafters import parse_sides
from jobs.serving.transcript import (
    MIN_TIMED_TOKENS,
    Transcript,
    TranscriptStep,
    first_difference,
    parse_transcript,
)
from tests.decoding.test_engine import plain
from tests.drafters.toys import END, base, toy_prompts
from tests.jobs.kinds.test_benchmark_kind import trained
from tests.jobs.serving.answers import answer

PROMPT = load("toy").tokenizer.decode(toy_prompts()[0], skip_special_tokens=True)
SMALL = {"prompt": PROMPT, "max_new_tokens": 24, "precision": "float32", "nodes": 4}


def test_a_drafter_does_not_change_the_text(queue: Path) -> None:
    run, longer = trained().run, {**SMALL, "max_new_tokens": 48}
    tokenizer = load("toy").tokenizer
    expected = plain(base(), tokenizer(PROMPT).input_ids, 48, [END])
    alone, drafted = answer("toy", **longer), answer(run, **longer)
    assert alone.text == drafted.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(alone.tokens) == len(expected) and {head for _, head in alone.tokens} == {0}
    assert alone.accepted == 1.0 and drafted.accepted is not None and drafted.accepted >= 1.0
    assert alone.speed and drafted.speed and alone.end in ("limit", "end")


def test_a_damaged_drafter_is_reported(queue: Path) -> None:
    run = trained().run
    (run_folder(run) / "drafter" / "drafter.safetensors").write_bytes(b"damaged")
    with pytest.raises(SlimscopeError, match="There is no drafter"):
        answer(run, **SMALL)


def test_sampling_and_stop_strings(queue: Path) -> None:
    sampling = {"temperature": 0.8, "top_p": 0.9, "stop": " and |zebra", "lookup": True}
    one, other = (answer("toy", **SMALL, **sampling) for _ in range(2))
    assert one.text == other.text  # the same seed
    assert " and " not in one.text and one.end in ("stop", "limit", "end")
    assert {head for _, head in one.tokens} <= {0, LOOKUP_HEAD}


def test_sides_are_parsed_from_their_names(queue: Path) -> None:
    job = trained()
    model, drafter = parse_sides(f"smollm2-135m, {job.run}")
    assert (model.model, model.drafter) == ("smollm2-135m", None)
    assert (drafter.model, drafter.drafter) == ("toy", run_folder(job.run) / "drafter")


def test_damaged_rows_end_a_transcript() -> None:
    rows = [
        {"unused": True},
        {"ms": 50.0, "tokens": [["A", 0]], "rejected": []},
        {"ms": 20.0, "tokens": [[" cat", 1], [" sat", 0]], "rejected": [" dog"]},
    ]
    found = parse_transcript(rows)
    assert found.passes[1] == TranscriptStep([(" cat", 1), (" sat", 0)], [" dog"], 20.0)
    assert (found.text, found.accepted, found.end) == ("A cat sat", 2.0, "") and found.unused
    assert (
        parse_transcript([]) == parse_transcript([{"waits": "Loading", "about": 1}]) == Transcript()
    )
    assert parse_transcript([{"tokens": 3}]).end == parse_transcript(["x"]).end == "error"


def test_a_speed_needs_enough_tokens() -> None:
    def of(tokens: int) -> float | None:
        one = TranscriptStep([("a", 0), ("b", 1)], [], 20.0)
        return Transcript([TranscriptStep([("A", 0)], [], 50.0), *[one] * (tokens // 2)]).speed

    assert of(MIN_TIMED_TOKENS - 2) is None and of(MIN_TIMED_TOKENS) == 100.0


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [("abc", "abd", 2), ("abc", "abc", None), ("ab", "abc", None), ("", "a", None)],
)
def test_first_difference(one: str, other: str, place: int | None) -> None:
    assert first_difference(one, other) == place
