"""Greedy samples of the toy model, and where two texts part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.evaluation.samples import agreement, same_start, write_samples
from backend.reporter import SilentReporter
from backend.text.prompts import STORIES, benchmark_prompts

TOKENS = 12


def test_samples_are_what_transformers_writes(toy) -> None:
    prompts = benchmark_prompts(STORIES, 3)
    found = write_samples(toy.model, toy.tokenizer, prompts, TOKENS, SilentReporter())
    assert [s.prompt for s in found] == [p.text for p in prompts]
    for sample in found:
        ids = toy.tokenizer(sample.prompt, return_tensors="pt").input_ids
        theirs = toy.model.generate(ids, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
        written = theirs[0, ids.shape[1] :]
        assert sample.text == toy.tokenizer.decode(written, skip_special_tokens=True)
        assert 0 < len(sample.tokens) <= TOKENS


def test_an_end_of_text_ends_a_sample(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    (prompt,) = benchmark_prompts(STORIES, 1)
    (whole,) = write_samples(toy.model, toy.tokenizer, [prompt], TOKENS, SilentReporter())
    monkeypatch.setattr(toy.model.generation_config, "eos_token_id", whole.tokens[4])
    (cut,) = write_samples(toy.model, toy.tokenizer, [prompt], TOKENS, SilentReporter())
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4])]


def test_agreement_counts_up_to_the_first_difference() -> None:
    assert agreement([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert agreement([[1, 2]], [[1, 2, 3, 4]]) == 0.5  # one went on
    assert agreement([[1], [1, 2]], [[1], [3, 2]]) == 0.5
    assert agreement([[]], [[]]) == 1.0 and agreement([[]], [[1]]) == 0.0


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_texts_are_alike_up_to_there_and_no_further(a: list[int], b: list[int]) -> None:
    n = same_start(a, b)
    assert a[:n] == b[:n] and a[n : n + 1] + b[n : n + 1] != (a[n : n + 1] or [None]) * 2
    assert 0.0 <= agreement([a], [b]) <= 1.0
    assert (agreement([a], [b]) == 1.0) == (a == b)
