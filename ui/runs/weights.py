"""The weight statistics of runs, and how runs and tensors are called in lists."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from backend.errors import SlimscopeError
from backend.models.sources.catalog import local_folder
from backend.quantization.plan import QuantizationPlan
from backend.store import frames, queries
from backend.store.tables import Job
from jobs.fields.models import resolve_model, saved_model
from ui.charts.heatmap import in_order
from ui.runs.results import find_job, kind_of, setting_summary, stages_of
from ui.widgets.dropdown import Choices
from ui.widgets.explorer import cached_by

DENSE = "dense"


@dataclass(frozen=True)
class RunWeights:
    """Weight statistics of one run: the newest of each tensor and stage, as `frames.tensor_table`
    returns them. `labels` are in the order of the method, `tensors` maps full names to "Block 3,
    q_proj" in the order of the model, `places` to block and module."""

    job: Job
    labels: Mapping[str, str]
    table: pd.DataFrame
    stages: list[str]
    tensors: dict[str, str]
    places: dict[str, tuple[int, str]]

    def of_stage(self, stage: str) -> pd.DataFrame:
        return self.table[self.table["stage"] == stage]

    def zero_share(self, stage: str) -> float | None:
        """Of the weights in the blocks; None of a stage that was not looked at."""
        rows = self.of_stage(stage)
        return float(rows["zeros"].sum() / rows["n"].sum()) if len(rows) else None

    @property
    def model(self) -> str:
        return str(self.job.config.get("model", ""))

    @property
    def typical(self) -> str:
        """One tensor to show the run by: a wide layer of the middle of the model."""
        names = [*self.tensors]
        middle = names[len(names) // 2 :]
        return next((name for name in middle if "up_proj" in name), middle[0])


@cached_by(queries.weights_mark)
def weights_of(run: str) -> RunWeights:
    job = queries.job(run)
    table = frames.tensor_table(job.id).groupby(["tensor", "stage"], sort=False).tail(1)
    stored: list[str] = [*dict.fromkeys(table["stage"])]
    labels = stage_labels(job, stored)
    stages = [stage for stage in labels if stage in stored]
    places = {row.tensor: (row.block, row.module) for row in table.itertuples()}
    return RunWeights(job, labels, table, stages, tensor_names(table), places)


def kept_stage(run: RunWeights, stages: Collection[str]) -> str:
    """Kept stage if among these stages, else the last."""
    kept = queries.job(run.job.id).kept_stage
    return kept if kept and kept in stages else max(stages, key=run.stages.index)


def grid_words(job: Job, tensor: str) -> str:
    """ "every group of 64 weights has at most 16 values" of a tensor that the run rounded; else
    empty."""
    kind, stored = kind_of(job), queries.plan(job.id)
    with suppress(ValidationError):
        plan = kind.plan.model_validate(stored) if kind and kind.plan and stored else None
        layers = plan.layers if isinstance(plan, QuantizationPlan) else {}
        if rounded := layers.get(tensor.removesuffix(".weight")):
            size = rounded.group_size
            group = f"group of {size} weights" if size else "row"
            return f"every {group} has at most {2**rounded.bits} values"
    return ""


def saved_folders(job: Job) -> dict[str, Path]:
    """Folders of the weights on this machine, by stage."""
    folders = dict[str, Path]()
    with suppress(SlimscopeError):
        source = resolve_model(str(job.config.get("model", "")), reads=False).source
        if folder := local_folder(source):
            folders[DENSE] = folder
    with suppress(SlimscopeError):
        folders[str(job.kept_stage)] = Path(saved_model(job.run)[0])
    return folders


def stage_labels(job: Job, stored: list[str]) -> dict[str, str]:
    """Labels of stages in the order of the method, unknown ones last."""
    labels = {str(stage): label for stage, label in stages_of(job).items()}
    return labels | {stage: stage for stage in stored if stage not in labels}


def run_choice(job: Job) -> tuple[str, str]:
    about = job.name or " · ".join([str(job.config.get("model", "")), *setting_summary(job)])
    deleted = " (deleted)" if job.removed_at else ""
    return f"{job.run}{deleted}  {about}".strip(), job.run


def run_choices(jobs: Sequence[Job], chosen: str) -> Choices:
    """Runs for a dropdown, after the chosen one where it is not among them (deleted)."""
    others = () if any(job.run == chosen for job in jobs) else (find_job(chosen),)
    return [run_choice(job) for job in (*others, *jobs) if job]


def layer_label(block: int, module: str) -> str:
    """ "Block 3, q_proj", or of a layer outside of the blocks its name."""
    name = module.rsplit(".", 1)[-1]
    return name if block < 0 else f"Block {block}, {name}"


def tensor_names(table: pd.DataFrame) -> dict[str, str]:
    modules = in_order([*table["module"].unique()])
    unique = table.drop_duplicates("tensor")
    unique = unique.assign(place=unique["module"].map(modules.index))
    return {
        row.tensor: layer_label(row.block, row.module)
        for row in unique.sort_values(["block", "place"]).itertuples()
    }
