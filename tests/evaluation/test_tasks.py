"""Multiple-choice questions from a text, and their scores; zero-shot tasks: errors without the
harness, and a custom task compared with an oracle."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from backend.errors import CancelledError, ComputeError, ConfigError, DatasetError
from backend.evaluation import tasks
from backend.evaluation import zero_shot as room
from backend.evaluation.tasks import (
    CHOICES,
    MIN_CONTEXT,
    PASSAGE_TOKENS,
    QUESTION_TOKENS,
    question_count,
    require_harness,
)
from backend.evaluation.zero_shot import (
    EndingScore,
    load_tasks,
    questions,
    score_endings,
    zero_shot,
)
from backend.models.sources.toy.stories import stories
from backend.reporter import SilentReporter
from tests.evaluation.conftest import Impatient, text_of
from tests.refusals import refusal

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
    assert len(questions(text_of(windows, bos), 4)) == 4 == question_count(WINDOWS, CONTEXT, 4)


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


HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the extra: slimscope[tasks]"
)
QUESTIONS = 24
YAML = """task: toy_next
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def test_without_the_harness_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "find_spec", lambda _: None)
    for call in (require_harness, lambda: load_tasks(["piqa"], None)):
        with refusal("tasks", "install -e '.[tasks]'", error=ConfigError):
            call()


def test_the_main_metric_is_the_normalized_accuracy_if_it_exists() -> None:
    both = {"acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.5, "alias": "t"}
    actual = {"results": {"t": both}, "n-samples": {"t": {"original": 9, "effective": 4}}}
    score = room._score("t", actual)
    assert (score.metric, score.value, score.stderr, score.n) == ("acc_norm", 0.5, None, 4)
    plain = {"results": {"t": {"word_perplexity,none": 9.0, "sample_len": 3}}}
    assert room._score("t", plain).metric == "word_perplexity"
    with pytest.raises(ComputeError):
        room._score("t", {"results": {"t": {"alias": "t"}}})


@pytest.fixture
def rows_of_task(tmp_path: Path) -> list[dict]:
    """Beginnings of stories, each with its next sentence and a sentence of another story."""
    tales = [story.split(". ") for story in stories(9, QUESTIONS)]
    rows = []
    for n, tale in enumerate(tales):
        answers = [f" {tale[1]}.", f" {tales[(n + 7) % QUESTIONS][2]}."]
        right = n % 2
        choices = answers if right == 0 else answers[::-1]
        rows.append({"question": f"{tale[0]}.", "choices": choices, "answer": right})
    data = tmp_path / "toy.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "toy.yaml").write_text(YAML.format(data=data))
    return rows


@torch.no_grad()
def likelihood(toy, question: str, choice: str) -> float:
    """log p(choice | question), token by token."""
    before, whole = (toy.tokenizer(text).input_ids for text in (question, question + choice))
    chances = toy.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(chances[i - 1, whole[i]].item() for i in range(len(before), len(whole)))


@HARNESS
def test_a_custom_task_has_the_score_computed_by_hand(
    toy, rows_of_task: list[dict], tmp_path: Path
) -> None:
    tasks = load_tasks(["toy_next"], tmp_path)
    (score,) = zero_shot(toy.model, toy.tokenizer, tasks, 0, 4, SilentReporter())
    right = 0
    for row in rows_of_task:
        normed = [likelihood(toy, row["question"], c) / len(c) for c in row["choices"]]
        right += normed.index(max(normed)) == row["answer"]
    assert right > 0  # otherwise nothing was tested
    assert score.value == right / QUESTIONS and score.n == QUESTIONS
    assert (score.task, score.metric) == ("toy_next", "acc_norm") and score.stderr is not None
    (part,) = zero_shot(toy.model, toy.tokenizer, tasks, 5, 4, SilentReporter())
    assert part.n == 5


@HARNESS
def test_a_task_stops_between_passes_and_removes_its_hook(
    toy, rows_of_task: list[dict], tmp_path: Path
) -> None:
    tasks = load_tasks(["toy_next"], tmp_path)
    with pytest.raises(CancelledError):
        zero_shot(toy.model, toy.tokenizer, tasks, 0, 4, Impatient())
    assert not toy.model._forward_pre_hooks


@HARNESS
def test_missing_data_and_unknown_tasks_are_reported(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text(
        YAML.format(data=tmp_path / "gone.jsonl").replace("toy_next", "gone")
    )
    with pytest.raises(DatasetError, match="data of the task gone"):
        load_tasks(["gone"], tmp_path)
    with pytest.raises(ConfigError, match="no task called 'nothing_like_it'"):
        load_tasks(["nothing_like_it"], tmp_path)
