"""Zero-shot tasks of lm-evaluation-harness, and multiple-choice questions from the evaluation text.

Tasks (pip extra `tasks`) use the harness's prompts and default seeds. The main metric of a task is
`acc_norm`, or `acc`, or else its first metric. Custom tasks in SLIMSCOPE_TEXT_DIR are looked up
first, because indexing the built-in tasks takes ten seconds.

Questions need no harness and ask which of four endings continues a passage. Each window is split
into parts of `QUESTION_TOKENS` tokens. The question of a part has a passage, its first
`PASSAGE_TOKENS` tokens, and four endings of `ENDING_TOKENS` tokens: the true ending, and those of
the next three parts of the window:

    choice = argmax_k sum_t log p(e_kt | passage, e_k1 ... e_k(t-1))

Accuracy is the share of questions whose true ending is strictly more likely than each of the
others; guessing gives 25 %. The questions are ours, so scores only compare models on one text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.calibration.heldout import token_nll, windows_at_once
from backend.errors import ComputeError, ConfigError, DatasetError
from backend.evaluation.native_text import TextModel, forward_passes
from backend.evaluation.tasks import (
    CHOICES,
    ENDING_TOKENS,
    PASSAGE_TOKENS,
    QUESTION_TOKENS,
    questions_per_window,
    require_harness,
)
from backend.models.block_forward import NewBatches
from backend.reporter import Reporter, stop_if_asked
from backend.text.slices import TextSlice

NEWLINE = "\n"


@dataclass(frozen=True)
class TaskScore:
    """Score of a model on a task.

    Attributes:
        task: name of the task.
        metric: name of the metric.
        value: value of the metric.
        stderr: standard error; None if the harness does not report it.
        n: number of questions.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


def load_tasks(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Load tasks with their data.

    Args:
        names: names of the tasks.
        folder: folder with YAML files of custom tasks.

    Raises:
        ConfigError: the harness is not installed, or a task does not exist.
        DatasetError: the data of a task is not available.
    """
    require_harness()
    manager = _manager(names, folder)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"The task {name[:60]!r} does not exist.",
                "Neither lm-evaluation-harness nor SLIMSCOPE_TEXT_DIR has it.",
                "List the tasks with `lm-eval ls tasks`.",
                "tasks",
            )
    return {name: _load_task(name, manager) for name in names}


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """Task manager of the harness, without its built-in tasks if all `names` are custom tasks."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        custom = TaskManager(include_path=str(folder), include_defaults=False)
        if {*names} <= {*custom.all_tasks}:
            return custom
    return TaskManager(include_path=None if folder is None else str(folder))


def _load_task(name: str, manager: Any) -> Any:
    from lm_eval.tasks import get_task_dict

    try:
        return get_task_dict([name], manager)[name]
    except Exception as error:  # the Hub, the cache and YAML files can raise any error
        raise DatasetError(
            f"The data of the task {name} is not available.",
            f"{type(error).__name__}: {str(error).partition(NEWLINE)[0]}"[:300],
            "Run the task once online. The Hugging Face cache then has its data.",
            "tasks",
        ) from error


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: dict[str, Any],
    limit: int,
    batch: int,
    reporter: Reporter,
) -> list[TaskScore]:
    """Run tasks and return the main metric of each.

    Args:
        model: model in eval mode.
        tokenizer: tokenizer of the model.
        tasks: result of `load_tasks`.
        limit: number of questions per task, from the first; 0 for all.
        batch: batch size.
        reporter: receiver of progress.

    Raises:
        ComputeError: the harness reports no metric.
        CancelledError: cancellation was requested.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    harness_model = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device)
    )
    scores = []
    hook = model.register_forward_pre_hook(lambda *_: stop_if_asked(reporter))
    try:
        for number, (name, task) in enumerate(tasks.items()):
            reporter.progress(number, len(tasks), f"Task {name}")
            output = evaluate(
                harness_model,
                {name: task},
                limit=limit or None,
                bootstrap_iters=100,  # for standard errors of metrics that are not means
                log_samples=False,
            )
            scores.append(_score(name, output))
    finally:
        hook.remove()
    return scores


def _score(name: str, output: Any) -> TaskScore:
    """Extract the main metric from the harness output, which has keys such as "acc,none"."""
    metrics = {
        key.partition(",")[0]: value
        for key, value in output["results"].get(name, {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    means = [key for key in metrics if not key.endswith("_stderr") and key != "sample_len"]
    if not means:
        raise ComputeError(f"The task {name} reported no metric.", "", "Choose another task.")
    preferred = ("acc_norm", "acc", "exact_match")
    metric = next((key for key in preferred if key in means), means[0])
    counts = output.get("n-samples", {}).get(name, {})
    return TaskScore(
        name,
        metric,
        float(metrics[metric]),
        metrics.get(f"{metric}_stderr"),
        int(counts.get("effective", 0)),
    )


@dataclass(frozen=True)
class EndingScore:
    """Answers of a model to multiple-choice questions.

    Attributes:
        correct: True for each question that was answered with its true ending.
    """

    correct: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def stderr(self) -> float | None:
        """Standard error of the accuracy over questions; None for a single question."""
        n = len(self.correct)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (n - 1)) if n > 1 else None


def questions(text: TextSlice, limit: int = 0) -> Tensor:
    """Make questions from a text: token ids [questions, CHOICES, L].

    Each row is a passage and one of its endings, the true ending first. L is `QUESTION_TOKENS`, or
    one more if the text has a beginning-of-text token, which then starts every row. The questions
    begin with the first of every window, so that a few of them cover the entire text.

    Args:
        text: windows with at least CHOICES parts each.
        limit: maximum number of questions; 0 for all.
    """
    ids, count = text.input_ids, questions_per_window(text.context)
    parts = ids[:, text.bos :][:, : count * QUESTION_TOKENS]
    parts = parts.reshape(len(ids), count, QUESTION_TOKENS)
    endings = torch.stack([parts.roll(-k, 1)[..., PASSAGE_TOKENS:] for k in range(CHOICES)], 2)
    passages = parts[:, :, None, :PASSAGE_TOKENS].expand(-1, -1, CHOICES, -1)
    bos = ids[:, None, None, : int(text.bos)].expand(-1, count, CHOICES, -1)
    rows = torch.cat([bos, passages, endings], 3).transpose(0, 1).flatten(0, 1)
    return rows[:limit] if limit else rows


@torch.no_grad()
def score_endings(
    model: TextModel,
    questions: Tensor,
    batch: int,
    reporter: Reporter,
    new_batches: NewBatches = list,
) -> EndingScore:
    """Let `model` answer `questions`.

    A streamed model reads its blocks CHOICES times, each time for a part of the questions, so that
    hidden states take no more space than those of the text itself.

    Args:
        model: model in eval mode.
        questions: token ids [questions, CHOICES, L], true ending first.
        batch: questions per forward pass; fewer if their logits would exceed `MAX_LOGITS`.
        reporter: receiver of progress.
        new_batches: factory for the container of hidden states of a streamed model.

    Raises:
        CancelledError: cancellation was requested.
    """
    batch = windows_at_once(model.config, questions[0].numel(), batch)
    correct: list[bool] = []
    for part in questions.split(-(-len(questions) // CHOICES)):

        def tick(share: float, answered: int = len(correct), count: int = len(part)) -> None:
            stop_if_asked(reporter)
            reporter.progress(answered + count * share, len(questions), "Choosing endings")

        log_likelihoods = []  # one per ending, float64
        rows = part.flatten(0, 1)
        for ids, logits in forward_passes(model, rows, batch * CHOICES, new_batches, tick):
            # The logits at the last token of the passage predict the first token of the ending.
            scored = slice(-ENDING_TOKENS - 1, None)
            endings = zip(logits[:, scored], ids[:, scored], strict=True)
            log_likelihoods += [-token_nll(*row).double().sum().cpu() for row in endings]
        scores = torch.stack(log_likelihoods).view(-1, CHOICES)
        correct += (scores[:, :1] > scores[:, 1:]).all(1).tolist()
    return EndingScore(tuple(correct))
