"""Zero-shot tasks with lm-evaluation-harness (pip extra `tasks`), with its prompts and default
seeds. The main metric of a task is `acc_norm` if it has it, else `acc`, else its first. Custom
tasks (SLIMSCOPE_TEXT_DIR) are looked up first: indexing the built-in ones takes ten seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.errors import ComputeError, ConfigError, DatasetError
from backend.evaluation.tasks import require_harness
from backend.reporter import Reporter, stop_if_asked

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
