"""Zero-shot tasks: errors without the harness, and a custom task compared with an oracle."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from backend.errors import CancelledError, ComputeError, ConfigError, DatasetError
from backend.evaluation import tasks
from backend.evaluation import zero_shot as room
from backend.evaluation.tasks import require_harness
from backend.evaluation.zero_shot import load_tasks, zero_shot
from backend.models.sources.toy.stories import stories
from backend.reporter import SilentReporter
from tests.evaluation.conftest import Impatient
from tests.refusals import refusal

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
def questions(tmp_path: Path) -> list[dict]:
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
    toy, questions: list[dict], tmp_path: Path
) -> None:
    tasks = load_tasks(["toy_next"], tmp_path)
    (score,) = zero_shot(toy.model, toy.tokenizer, tasks, 0, 4, SilentReporter())
    right = 0
    for row in questions:
        normed = [likelihood(toy, row["question"], c) / len(c) for c in row["choices"]]
        right += normed.index(max(normed)) == row["answer"]
    assert right > 0  # otherwise nothing was tested
    assert score.value == right / QUESTIONS and score.n == QUESTIONS
    assert (score.task, score.metric) == ("toy_next", "acc_norm") and score.stderr is not None
    (part,) = zero_shot(toy.model, toy.tokenizer, tasks, 5, 4, SilentReporter())
    assert part.n == 5


@HARNESS
def test_a_task_stops_between_passes_and_removes_its_hook(
    toy, questions: list[dict], tmp_path: Path
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
