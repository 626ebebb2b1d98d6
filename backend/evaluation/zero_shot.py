"""Zero-shot tasks, by lm-evaluation-harness (the extra `tasks`).

The harness states each task: prompts, answers, metric. Here it is given a loaded model and asked
for no examples in the prompt (0-shot), with its own seeds. A task's main figure is `acc_norm`
(log-likelihood for each byte of an answer) where the task has it, else `acc`, else its first.

Tasks of one's own are YAML files of the harness in SLIMSCOPE_TASK_DIR; they are found before the
harness's own, which takes ten seconds to look through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.errors import ComputeError, ConfigError, DatasetError
from backend.evaluation.harness import require_harness
from backend.reporter import Reporter, stop_if_asked

MAIN = ("acc_norm", "acc", "exact_match")
NEWLINE = "\n"
RESAMPLES = 100  # of metrics that are no means; a mean's standard error needs none


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on a task.

    Attributes:
        metric: which of the task's; `stderr`: None where the harness tells none.
        n: questions asked.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


def load_tasks(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """The tasks of these names with their data, before any work.

    Args:
        folder: of YAML files with tasks of one's own.

    Raises:
        ConfigError: the harness is not installed, or knows no such task.
        DatasetError: the data of a task is neither here nor to be had.
    """
    require_harness()
    manager = _manager(names, folder)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"There is no task called {name[:60]!r}.",
                "lm-evaluation-harness does not know it, nor does SLIMSCOPE_TASK_DIR.",
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
    except Exception as error:  # whatever a hub, a cache or a YAML file can raise
        raise DatasetError(
            f"The data of the task {name} cannot be had.",
            f"{type(error).__name__}: {str(error).partition(NEWLINE)[0]}"[:300],
            "Run it once with a connection: the data stays in the Hugging Face cache.",
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
    """Run the tasks; the main metric of each.

    Args:
        tasks: of `load_tasks`.
        limit: questions of each task, its first ones; 0: all.
        batch: requests that go through the model together.

    Raises:
        ComputeError: the harness gives no figure.
        CancelledError: cancellation was requested.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    harnessed = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device)
    )
    scores = []
    with _stoppable(model, reporter):
        for number, (name, task) in enumerate(tasks.items()):
            reporter.progress(number, len(tasks), f"Task {name}")
            found = evaluate(
                harnessed, {name: task}, limit=limit or None, bootstrap_iters=RESAMPLES,
                log_samples=False,
            )  # fmt: skip
            scores.append(_score(name, found))
    return scores


@contextmanager
def _stoppable(model: PreTrainedModel, reporter: Reporter) -> Iterator[None]:
    """Check for cancellation at every forward pass."""
    hook = model.register_forward_pre_hook(lambda *_: stop_if_asked(reporter))
    try:
        yield
    finally:
        hook.remove()


def _score(name: str, found: Any) -> TaskScore:
    """Of the harness's "acc,none": 0.5, "acc_stderr,none": 0.01 and so on."""
    figures = {
        key.partition(",")[0]: value
        for key, value in found["results"].get(name, {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    means = [key for key in figures if not key.endswith("_stderr") and key != "sample_len"]
    if not means:
        raise ComputeError(f"The task {name} gave no figure.", "", "Choose another task.")
    metric = next((key for key in MAIN if key in means), means[0])
    asked = found.get("n-samples", {}).get(name, {})
    return TaskScore(
        name, metric, float(figures[metric]), figures.get(f"{metric}_stderr"),
        int(asked.get("effective", 0)),
    )  # fmt: skip
