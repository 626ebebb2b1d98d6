"""Multiple-choice questions from a text, and their scores."""

import pytest
import torch

from backend.errors import CancelledError
from backend.evaluation.tasks import (
    CHOICES,
    MIN_CONTEXT,
    PASSAGE_TOKENS,
    QUESTION_TOKENS,
    question_count,
)
from backend.evaluation.zero_shot import EndingScore, questions, score_endings
from backend.models.sources.toy.stories import stories
from backend.reporter import SilentReporter
from tests.evaluation.conftest import Impatient, text_of

CONTEXT = MIN_CONTEXT + 7  # tokens after the last part
WINDOWS = 3


@pytest.fixture(scope="module")
def question_ids(toy) -> torch.Tensor:
    ids = toy.tokenizer(" ".join(stories(3, 40))).input_ids
    return questions(text_of(torch.tensor(ids[: WINDOWS * CONTEXT]).view(WINDOWS, CONTEXT)))


@pytest.mark.parametrize("bos", [False, True])
def test_a_question_has_a_passage_its_true_ending_and_the_next_three(bos: bool) -> None:
    windows = torch.arange(WINDOWS * CONTEXT).view(WINDOWS, CONTEXT)
    question_ids = questions(text_of(windows, bos))
    assert question_ids.shape == (WINDOWS * CHOICES, CHOICES, bos + QUESTION_TOKENS)
    assert question_count(WINDOWS, CONTEXT) == len(question_ids)
    if bos:
        assert torch.equal(question_ids[:, :, 0], windows[:, :1].repeat(CHOICES, CHOICES))
        question_ids = question_ids[:, :, 1:] - 1
    first, second, *_, last = question_ids  # the first of every window come first
    assert first[0].tolist() == list(range(QUESTION_TOKENS))
    assert second[0].tolist() == list(range(CONTEXT, CONTEXT + QUESTION_TOKENS))
    assert all(
        first[k, :PASSAGE_TOKENS].tolist() == list(range(PASSAGE_TOKENS)) for k in range(CHOICES)
    )
    starts = [
        [row[PASSAGE_TOKENS].item() - PASSAGE_TOKENS for row in part] for part in (first, last)
    ]
    assert starts[0] == [0, QUESTION_TOKENS, 2 * QUESTION_TOKENS, 3 * QUESTION_TOKENS]
    begin = (WINDOWS - 1) * CONTEXT  # endings wrap around at the end of the window
    assert starts[1] == [begin + k * QUESTION_TOKENS for k in (3, 0, 1, 2)]
    few = questions(text_of(windows, bos), 4)
    assert len(few) == 4 == question_count(WINDOWS, CONTEXT, 4)


@torch.no_grad()
def test_the_answer_is_the_most_likely_ending(toy, question_ids) -> None:
    score = score_endings(toy.model, question_ids, 2, SilentReporter())
    for question, right in zip(question_ids, score.correct, strict=True):
        likelihoods = []
        for row in question:
            chances = toy.model(row[None]).logits[0].log_softmax(-1)
            likelihoods.append(
                sum(chances[t - 1, row[t]].item() for t in range(PASSAGE_TOKENS, QUESTION_TOKENS))
            )
        assert right == (likelihoods.index(max(likelihoods)) == 0)
    assert (
        1 / CHOICES < score.accuracy == sum(score.correct) / len(question_ids)
    )  # the model was trained on stories


@pytest.mark.parametrize("logit", [0.0, float("nan")])
def test_a_model_without_preference_has_no_correct_answer(
    toy, question_ids, monkeypatch: pytest.MonkeyPatch, logit: float
) -> None:
    head = toy.model.get_output_embeddings()
    monkeypatch.setattr(head, "forward", lambda x: x.new_full((*x.shape[:-1], 512), logit))
    assert score_endings(toy.model, question_ids, 2, SilentReporter()).accuracy == 0


def test_scoring_stops_within_the_text(toy, question_ids) -> None:
    with pytest.raises(CancelledError):
        score_endings(toy.model, question_ids, 3, Impatient())


def test_the_standard_error_is_that_of_a_share() -> None:
    score = EndingScore((True, True, True, False))
    assert score.accuracy == 0.75 and score.stderr == pytest.approx((0.75 * 0.25 / 3) ** 0.5)
    assert EndingScore((True,)).stderr is None
