"""Zero-shot tasks with lm-evaluation-harness (pip extra `tasks`), with its prompts and default
seeds. The main metric of a task is `acc_norm` if it has it, else `acc`, else its first. Custom
tasks (SLIMSCOPE_TEXT_DIR) are looked up first: indexing the built-in ones takes ten seconds.

Multiple choice made from the evaluation text needs no harness: which of four endings continues a
passage? A question is a part of `PART` tokens of a window: a passage, its first `PASSAGE` tokens,
and four endings of `ENDING` tokens, its own and those of the next three parts of the window:

    choice = argmax_k sum_t log p(e_kt | passage, e_k1 ... e_k(t-1))

Accuracy is the share of questions answered with their own ending, which has to be likelier than
each other one; guessing gives 25 %. (Ours: figures compare models on one text.)
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
from backend.evaluation.native_text import TextModel, passes
from backend.evaluation.tasks import CHOICES, ENDING, PART, PASSAGE, parts_of, require_harness
from backend.models.block_forward import NewBatches
from backend.reporter import Reporter, stop_if_asked
from backend.text.slices import TextSlice

NEWLINE = "\n"


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on a task."""

    task: str
    metric: str  # name of the metric
    value: float
    stderr: float | None  # None if the harness reports none
    n: int  # number of questions


def load_tasks(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Load the named tasks with their data. `folder`: YAML files of custom tasks. Raises
    ConfigError: the harness is not installed, or there is no such task. DatasetError: the data of a
    task is not available."""
    require_harness()
    manager = _manager(names, folder)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"There is no task called {name[:60]!r}.",
                "Neither lm-evaluation-harness nor SLIMSCOPE_TEXT_DIR has it.",
                "`lm-eval ls tasks` lists them.",
                "tasks",
            )
    return {name: _loaded(name, manager) for name in names}


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if {*names} <= {*own.all_tasks}:
            return own
    return TaskManager(include_path=None if folder is None else str(folder))


def _loaded(name: str, manager: Any) -> Any:
    from lm_eval.tasks import get_task_dict

    try:
        return get_task_dict([name], manager)[name]
    except Exception as error:  # a hub, a cache or a YAML file can raise anything
        raise DatasetError(
            f"The data of the task {name} is not available.",
            f"{type(error).__name__}: {str(error).partition(NEWLINE)[0]}"[:300],
            "Run it once online: the data is kept in the Hugging Face cache.",
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
    """Run the tasks and return the main metric of each. `tasks`: from `load_tasks`. `limit`: number
    of questions per task, the first ones; 0: all. `batch`: batch size. Raises ComputeError: the
    harness reports no metric; CancelledError: cancellation was requested."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    harnessed = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device)
    )
    scores = []
    hook = model.register_forward_pre_hook(lambda *_: stop_if_asked(reporter))
    try:
        for number, (name, task) in enumerate(tasks.items()):
            reporter.progress(number, len(tasks), f"Task {name}")
            output = evaluate(
                harnessed,
                {name: task},
                limit=limit or None,
                bootstrap_iters=100,  # for metrics that are not means
                log_samples=False,
            )
            scores.append(_score(name, output))
    finally:
        hook.remove()
    return scores


def _score(name: str, output: Any) -> TaskScore:
    """The main metric in the harness output, which has keys such as "acc,none"."""
    metrics = {
        key.partition(",")[0]: value
        for key, value in output["results"].get(name, {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    means = [key for key in metrics if not key.endswith("_stderr") and key != "sample_len"]
    if not means:
        raise ComputeError(f"The task {name} reported no metric.", "", "Choose another task.")
    usual = ("acc_norm", "acc", "exact_match")
    metric = next((key for key in usual if key in means), means[0])
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
    """Answers to questions of the same kind."""

    right: tuple[bool, ...]  # whether each question was answered with its own ending

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def stderr(self) -> float | None:
        """Of the accuracy, over questions; None for a single one."""
        n = len(self.right)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (n - 1)) if n > 1 else None


def questions(text: TextSlice, limit: int = 0) -> Tensor:
    """Passages with each of their endings, the own one first: [questions, CHOICES, L].

    L is `PART`, or one more where the text has a beginning-of-text token, which then begins every
    row. The first questions are the first of every window, so that a few of them cover the text.
    `text`: of windows that hold at least CHOICES parts. `limit`: number of questions; 0: all."""
    ids, each = text.input_ids, parts_of(text.context)
    parts = ids[:, text.bos :][:, : each * PART].reshape(len(ids), each, PART)
    endings = torch.stack([parts.roll(-k, 1)[..., PASSAGE:] for k in range(CHOICES)], 2)
    passages = parts[:, :, None, :PASSAGE].expand(-1, -1, CHOICES, -1)
    begin = ids[:, None, None, : int(text.bos)].expand(-1, each, CHOICES, -1)
    rows = torch.cat([begin, passages, endings], 3).transpose(0, 1).flatten(0, 1)
    return rows[:limit] if limit else rows


@torch.no_grad()
def score_endings(
    model: TextModel, asked: Tensor, batch: int, reporter: Reporter, new: NewBatches = list
) -> EndingScore:
    """The answers of `model`, which should be in eval mode, to `questions`.

    A streamed model reads its blocks once for every CHOICES-th part of the questions, so that no
    more hidden states wait than those of the text itself. `batch`: questions in one forward pass,
    or fewer where their logits would exceed `MAX_LOGITS`. `new`: creates the container for the
    hidden states of a streamed model. Raises CancelledError: cancellation was requested."""
    batch = windows_at_once(model.config, asked[0].numel(), batch)
    right: list[bool] = []
    for some in asked.split(-(-len(asked) // CHOICES)):

        def tick(share: float, done: int = len(right), more: int = len(some)) -> None:
            stop_if_asked(reporter)
            reporter.progress(done + more * share, len(asked), "Choosing endings")

        rows = some.flatten(0, 1)
        found = []  # log p of each ending, float64
        for part, logits in passes(model, rows, batch * CHOICES, new, tick):
            windows = zip(logits[:, -ENDING - 1 :], part[:, -ENDING - 1 :], strict=True)
            found += [-token_nll(*row).double().sum().cpu() for row in windows]
        chosen = torch.stack(found).view(-1, CHOICES)
        right += (chosen[:, :1] > chosen[:, 1:]).all(1).tolist()
    return EndingScore(tuple(right))
