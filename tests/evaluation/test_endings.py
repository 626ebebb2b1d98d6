"""Endings of passages: what is asked, and that answers are what the model finds likeliest."""

from __future__ import annotations

import pytest
import torch

from backend.errors import CancelledError
from backend.evaluation.endings import EndingScore, questions, score_endings
from backend.evaluation.question_shape import CHOICES, PART, PASSAGE, question_count
from backend.models.loading import load
from backend.models.sources.toy.stories import stories
from backend.reporter import SilentReporter

CONTEXT = 2 * PART + 8


@pytest.fixture(scope="module")
def toy():
    return load("toy")


@pytest.fixture(scope="module")
def asked(toy) -> torch.Tensor:
    ids = toy.tokenizer(" ".join(stories(3, 40))).input_ids
    windows = torch.tensor(ids[: 8 * CONTEXT]).view(8, CONTEXT)
    return questions(windows)


def test_a_question_is_a_passage_with_its_own_ending_and_the_next_three() -> None:
    windows = torch.arange(3 * CONTEXT).view(3, CONTEXT)
    asked = questions(windows)
    assert asked.shape == (6, CHOICES, PART) and question_count(3, CONTEXT) == 6
    first, second, _, middle, *_ = asked  # the first of every window come first
    assert first[0].tolist() == list(range(PART))
    assert second[0].tolist() == list(range(CONTEXT, CONTEXT + PART))
    assert middle[0].tolist() == list(range(PART, 2 * PART))
    assert all(first[k, :PASSAGE].tolist() == list(range(PASSAGE)) for k in range(CHOICES))
    starts = [row[PASSAGE].item() - PASSAGE for row in first]
    assert starts == [0, PART, CONTEXT, CONTEXT + PART]
    assert torch.equal(questions(windows, 4), asked[:4]) and question_count(3, CONTEXT, 4) == 4


@torch.no_grad()
def test_the_answer_is_the_ending_that_is_likeliest_token_by_token(toy, asked) -> None:
    score = score_endings(toy.model, asked, 3, SilentReporter())
    for question, right in zip(asked, score.right, strict=True):
        likelihoods = []
        for row in question:
            chances = toy.model(row[None]).logits[0].log_softmax(-1)
            likelihoods.append(sum(chances[t - 1, row[t]].item() for t in range(PASSAGE, PART)))
        assert right == (likelihoods.index(max(likelihoods)) == 0)
    assert 1 / CHOICES < score.accuracy == sum(score.right) / len(asked)  # it has learnt stories


def test_the_error_is_that_of_a_share() -> None:
    score = EndingScore((True, True, True, False))
    assert score.accuracy == 0.75 and score.stderr == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert EndingScore((True,)).stderr is None


def test_it_stops_within_the_text(toy, asked) -> None:
    class Impatient(SilentReporter):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(CancelledError):
        score_endings(toy.model, asked, 3, Impatient())
