"""Weight statistics of runs, and labels of runs and tensors in lists."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from backend.errors import SlimscopeError
from backend.models.sources.catalog import local_folder
from backend.quantization.plan import QuantizationPlan
from backend.statistics.tensors import RELATIVE_ERROR
from backend.store import frames, queries
from backend.store.tables import Job
from jobs.fields.models import resolve_model, saved_model
from jobs.metrics import BITS_PER_WEIGHT
from ui.charts.heatmap import BITS, in_order
from ui.runs.results import (
    DENSE,
    RunResults,
    find_job,
    kind_of,
    setting_summary,
    stages_of,
)
from ui.theme import declared
from ui.widgets.dropdown import Choices
from ui.widgets.explorer import cached_by

MAGNITUDE = "magnitude"  # profile of a tensor with groups


@dataclass(frozen=True)
class RunWeights:
    """The newest weight statistics of each tensor and stage of one run.

    Attributes:
        job: the run.
        labels: labels of its stages, in the order of the method.
        table: statistics, with the columns of `frames.tensor_table`.
        stages: stages with statistics, in the order of the method.
        tensors: labels of tensors, such as "Block 3, q_proj", in the order of the model.
        places: block and module of each tensor.
    """

    job: Job
    labels: Mapping[str, str]
    table: pd.DataFrame
    stages: list[str]
    tensors: dict[str, str]
    places: dict[str, tuple[int, str]]

    def of_stage(self, stage: str) -> pd.DataFrame:
        """The rows of one stage."""
        return self.table[self.table["stage"] == stage]

    def zero_share(self, stage: str) -> float | None:
        """Share of zeros among the weights in the blocks; None if the stage was not recorded."""
        rows = self.of_stage(stage)
        return float(rows["zeros"].sum() / rows["n"].sum()) if len(rows) else None

    @property
    def effect(self) -> dict[str, str]:
        """Stages that show the effect of the method on layers: `before`, `after`, and the strongest
        `rival`; each empty if there is none."""
        errors = self.table.get(RELATIVE_ERROR)
        known = {*self.table["stage"][errors.notna()]} if errors is not None else set[str]()
        measured = [s for s in self.stages if s in known and s != DENSE]
        main = [s for s in measured if declared(s).main] or measured
        if not main:
            return {"before": "", "after": "", "rival": ""}
        kept = str(self.job.kept_stage)
        after = kept if kept in self.stages and kept != DENSE else main[-1]
        befores = [s for s in main if s != after]
        before = befores[0 if after in measured else -1] if befores else ""
        figure = RunResults(kind_of(self.job), queries.results([self.job.id]), self.job).key_figure
        rivals = [s for s in (figure.rivals if figure else ()) if s in measured]
        rival = next((s for s in rivals if s not in (before, after)), "")
        return {"before": before, "after": after, "rival": rival}

    @property
    def model(self) -> str:
        """The model of the run."""
        return str(self.job.config.get("model", ""))

    @property
    def example_tensor(self) -> str:
        """A representative tensor: a wide layer in the middle of the model."""
        names = [*self.tensors]
        middle = names[len(names) // 2 :]
        return next((name for name in middle if "up_proj" in name), middle[0])


@cached_by(queries.weights_mark)
def weights_of(run: str) -> RunWeights:
    """The weight statistics of a run."""
    job = queries.job(run)
    table = frames.tensor_table(job.id).groupby(["tensor", "stage"], sort=False).tail(1)
    recorded: list[str] = [*dict.fromkeys(table["stage"])]
    labels = stage_labels(job, recorded)
    stages = [stage for stage in labels if stage in recorded]
    places = {row.tensor: (row.block, row.module) for row in table.itertuples()}
    bits = _mixed_bits(job)
    if bits:
        quantized = {r.stage for r in queries.results([job.id]) if r.metric == BITS_PER_WEIGHT}
        known = table["tensor"].map(bits).where(table["stage"].isin(quantized))
        table = table.assign(**{BITS: known})
    return RunWeights(job, labels, table, stages, tensor_names(table), places)


def runs_with_groups() -> list[str]:
    """Runs with weight statistics and group magnitudes, newest first."""
    shown = {job.run for job in queries.runs_with_weights()}
    return [job.run for job in queries.runs_with_profile(MAGNITUDE) if job.run in shown]


def _mixed_bits(job: Job) -> dict[str, int]:
    """Bits of each quantized tensor if they differ; else empty."""
    plan = quantization_plan(job)
    bits = {f"{x}.weight": width.bits for x, width in plan.widths.items()} if plan else {}
    return bits if len({*bits.values()}) > 1 else {}


def quantization_plan(job: Job) -> QuantizationPlan | None:
    """The bits and groups of a run's layers; None if it did not quantize any."""
    kind, stored = kind_of(job), queries.plan(job.id)
    with suppress(ValidationError):
        plan = kind.plan.model_validate(stored) if kind and kind.plan and stored else None
        return plan if isinstance(plan, QuantizationPlan) else None
    return None


def kept_stage(run: RunWeights, stages: Collection[str]) -> str:
    """The kept stage if it is among these stages, else the last of them."""
    stage = queries.job(run.job.id).kept_stage
    return stage if stage and stage in stages else max(stages, key=run.stages.index)


def grid_description(job: Job, tensor: str) -> str:
    """The quantization grid of a tensor, such as "every group of 64 weights has at most 16 values",
    and the range of bits if layers differ; empty if the run did not quantize it."""
    plan, mixed = quantization_plan(job), _mixed_bits(job)
    layer = plan.layers.get(tensor.removesuffix(".weight")) if plan else None
    if layer is None:
        return ""
    group = f"group of {layer.group_size} weights" if layer.group_size else "row"
    others = ""
    if mixed:
        low, high = min(mixed.values()), max(mixed.values())
        others = f" in this layer; layers have {low} to {high} bits"
    return f"every {group} has at most {2**layer.bits} values{others}"


def saved_folders(job: Job) -> dict[str, Path]:
    """Folders on this machine that hold the weights of the dense and the kept stage, by stage."""
    folders = dict[str, Path]()
    with suppress(SlimscopeError):
        source = resolve_model(str(job.config.get("model", "")), reads=False).source
        if folder := local_folder(source):
            folders[DENSE] = folder
    with suppress(SlimscopeError):
        folders[str(job.kept_stage)] = Path(saved_model(job.run)[0])
    return folders


def stage_labels(job: Job, recorded: list[str]) -> dict[str, str]:
    """Labels of stages in the order of the method, followed by recorded stages without a label."""
    labels = {str(stage): label for stage, label in stages_of(job).items()}
    return labels | {stage: stage for stage in recorded if stage not in labels}


def run_choice(job: Job) -> tuple[str, str]:
    """Label and value of a run in a dropdown."""
    summary = job.name or " · ".join([str(job.config.get("model", "")), *setting_summary(job)])
    deleted = " (deleted)" if job.removed_at else ""
    return f"{job.run}{deleted}  {summary}".strip(), job.run


def run_choices(jobs: Sequence[Job], selected: str) -> Choices:
    """Runs for a dropdown; a selected run that is not among `jobs` (a deleted one) comes first."""
    missing = () if any(job.run == selected for job in jobs) else (find_job(selected),)
    return [run_choice(job) for job in (*missing, *jobs) if job]


def layer_label(block: int, module: str) -> str:
    """The label of a layer: "Block 3, q_proj", with the number of an expert "Block 3, 7.q_proj";
    its name alone outside the blocks."""
    *_, expert, name = ["", *module.split(".")]
    name = f"{expert}.{name}" if expert.isdecimal() else name
    return name if block < 0 else f"Block {block}, {name}"


def tensor_names(table: pd.DataFrame) -> dict[str, str]:
    """Labels of tensors by full name, in the order of the model.

    Args:
        table: rows with the columns tensor, block and module.
    """
    modules = in_order([*table["module"].unique()])
    unique = table.drop_duplicates("tensor")
    unique = unique.assign(rank=unique["module"].map(modules.index))
    return {
        row.tensor: layer_label(row.block, row.module)
        for row in unique.sort_values(["block", "rank"]).itertuples()
    }
