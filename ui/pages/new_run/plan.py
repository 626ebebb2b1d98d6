"""The picture of a composition's plan: the model, each step with its map of formats, time, sizes,
memory and disk, and the equivalent shell command."""

import json
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from backend.errors import SlimscopeError
from backend.models import memory
from backend.models.layer_names import layer_from_name
from backend.options import Plan
from backend.sensitivity.profile import Format
from backend.settings import settings
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs import pipeline, submit, sweep
from jobs.fields.models import resolve_model
from jobs.kind import Estimate
from jobs.sweep import SweepPlan
from ui.charts.formats import format_color
from ui.charts.heatmap import in_order
from ui.format import short_count, size, time_range
from ui.pages.new_run.composition import (
    MODEL,
    ComposedStep,
    Composition,
    Options,
    label_of,
    with_option,
)
from ui.runs.results import size_before, size_saved

LAST_S = 7 * 86_400.0  # end of the time axis
TICKS = {"1 min": 60, "1 h": 3600, "1 day": 86_400}


@dataclass
class PlannedStep:
    """A step of a composition with its plan, or the reason why it cannot run.

    Attributes:
        runs: number of its runs, on the results of all runs of the step before.
    """

    step: ComposedStep
    plan: SweepPlan | None = None
    error: SlimscopeError | None = None
    runs: int = 0

    @property
    def label(self) -> str:
        """The name of the step."""
        return label_of(self.step)

    @property
    def seconds(self) -> tuple[float, float]:
        """Shortest and longest expected time of all runs of the step."""
        if not self.plan:
            return 0.0, 0.0
        own, slots = len(self.plan.configs), settings().slots
        factor = self.runs / own * min(slots, own) / min(slots, self.runs)
        return self.plan.estimate.low * factor, self.plan.estimate.high * factor

    @property
    def time(self) -> str:
        """The expected time of all runs of the step."""
        return time_range(*self.seconds) if self.plan else ""


def planned(composition: Composition) -> list[PlannedStep]:
    """Plan every step, even after an invalid one."""
    steps, branches, runs = list[PlannedStep](), 1, 0
    for number, step in enumerate(composition.steps):
        each = PlannedStep(step)
        steps.append(each)
        try:
            each.plan = _plan(composition, number)
            branches *= len(each.plan.configs)
            runs += branches
            each.runs = branches
            pipeline.require_few(runs, [*step.several])
        except SlimscopeError as error:
            each.plan, each.error = None, error
    return steps


def _plan(composition: Composition, number: int) -> SweepPlan:
    step = composition.steps[number]
    several = sweep.read(step.kind, step.several.items())
    if len(composition.steps) == 1:
        return sweep.plan(step.kind, step.values, several)
    values = {name: text for name, text in step.values.items() if name != MODEL}
    return pipeline.plan_step(pipeline.Step(step.kind, "", values, several), composition.model)


def price(composition: Composition, options: Options, name: str) -> str:
    """Time and saved size of the shown step with a recipe or preset; empty if it cannot run."""
    step = with_option(composition.shown, options, name)
    model = {MODEL: composition.model} if MODEL in step.spec.config.model_fields else {}
    try:
        cost = sweep.plan(step.kind, {**step.values, **model}, {}).estimate
    except SlimscopeError:
        return ""
    saved = f" · {size(cost.size_after_bytes)}" if cost.size_after_bytes else ""
    return f"{time_range(cost.low, cost.high)}{saved}"


def command(composition: Composition) -> str:
    """The shell command equivalent to a composition."""
    if len(composition.steps) > 1:
        text = json.dumps(composition.document(), ensure_ascii=False)
        return f"printf '%s' {shlex.quote(text)} | slimscope pipeline -"
    (step,) = composition.steps
    values: Mapping[str, Any] = step.values
    try:
        several = sweep.read(step.kind, step.several.items())
        values = submit.validate_config(step.kind, values).model_dump(mode="json")
    except SlimscopeError:  # shown next to its field
        several = {}
    return submit.command_line(step.kind, values, several)


# the map of formats -------------------------------------------------------------------------------


class Cells(NamedTuple):
    """Consecutive blocks in which a layer has the same format."""

    first: int
    number: int
    color: str
    title: str


class LayerMap(NamedTuple):
    """Formats by layer and block. `rows`: layer name and its cells; `legend`: color, format, number
    of layers."""

    blocks: int
    rows: list[tuple[str, list[Cells]]]
    legend: list[tuple[str, str, int]]


def layer_map(plan: Plan | None) -> LayerMap | None:
    """The map of a plan; None for a plan without formats. Experts of a block share a row with their
    most common format."""
    by_module: dict[str, dict[int, list[str]]] = {}
    texts = plan.formats if plan else {}
    for name, text in texts.items():
        layer = layer_from_name(name)
        module = layer.module.rpartition(".")[2]
        by_module.setdefault(module, {}).setdefault(layer.block, []).append(text)
    if not by_module:
        return None
    formats = {text: Format.parse(text) for text in texts.values()}
    rows = []
    for module in in_order([*by_module]):
        usual = {b: Counter(x).most_common(1)[0][0] for b, x in by_module[module].items()}
        cells = []
        for text, group in groupby(sorted(usual), key=usual.__getitem__):
            blocks = [*group]
            span = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]}–{blocks[-1]}"
            title = f"{module}, {span}: {formats[text].label}"
            cells.append(Cells(blocks[0], len(blocks), format_color(formats[text]), title))
        rows.append((module.removesuffix("_proj"), cells))
    counts = Counter(texts.values()).most_common()
    legend = [(format_color(formats[text]), formats[text].label, n) for text, n in counts]
    return LayerMap(1 + max(b for x in by_module.values() for b in x), rows, legend)


# the picture --------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """A quantity as a bar: label, text, and start and end as shares of the axis."""

    label: str
    text: str
    start: float
    end: float
    is_source: bool = False


def bars(steps: Sequence[PlannedStep]) -> list[Bar]:
    """Time, size before and after, memory and disk of a valid composition."""
    costs = [step.plan.estimate for step in steps if step.plan]
    low, high = (sum(step.seconds[i] for step in steps) for i in (0, 1))
    found = [Bar("Time", time_range(low, high), time_position(low), time_position(high))]
    found += _size_bars(costs)
    host = max(cost.host_bytes for cost in costs)
    found.append(_memory_bar("Memory", host, memory.memory_available()))
    if on_card := [cost for cost in costs if not cost.device.is_host]:
        largest = max(on_card, key=lambda cost: cost.bytes)
        label = f"Memory of {largest.device.device}"
        found.append(_memory_bar(label, largest.bytes, largest.device.free))
    disk = sum(
        cost.disk.bytes * step.runs for cost, step in zip(costs, steps, strict=True) if cost.disk
    )
    if disk:
        free = shutil.disk_usage(settings().root).free
        text = f"up to {size(disk)} of {size(free)} free"
        found.append(Bar("Disk", text, 0.0, min(1.0, disk / free)))
    return found


def _memory_bar(label: str, needed: int, available: int) -> Bar:
    return Bar(
        label,
        f"about {size(needed)} of {size(available)}",
        0.0,
        min(1.0, needed / max(available, 1)),
    )


def _size_bars(costs: Sequence[Estimate]) -> list[Bar]:
    saving = [cost for cost in costs if cost.size_after_bytes]
    if not saving:
        return []
    source, saved = saving[0].size_before_bytes or 0, saving[-1].size_after_bytes or 0
    parameters = saving[0].sizes[2] if saving[0].sizes else 0
    before = 2 * parameters or source
    largest = max(before, saved, 1)
    return [
        Bar("Size before", size_before(source, parameters), 0.0, before / largest, True),
        Bar("Size after", f"about {size_saved(saved, parameters)}", 0.0, saved / largest),
    ]


def time_position(seconds: float) -> float:
    """The position of a time on a log axis from a second to a week, 0 to 1."""
    return max(0.0, min(1.0, math.log(max(seconds, 1.0)) / math.log(LAST_S)))


def ticks() -> dict[str, float]:
    """Labels of the time axis and their positions."""
    return {label: time_position(seconds) for label, seconds in TICKS.items()}


def source_of(composition: Composition) -> tuple[str, str]:
    """Title and size of the model, and the note of the catalog."""
    try:
        facts = resolve_model(composition.model, reads=False).facts
    except SlimscopeError:  # the kind gives the reason
        return composition.model, ""
    shape = f"{short_count(facts.parameters)} parameters, {facts.blocks} blocks"
    return f"{facts.title}: {shape}", facts.note


def same_runs(step: PlannedStep) -> dict[str, list[Job]]:
    """Runs of the same config, which gives the same result: finished ones, and others."""
    configs = step.plan.configs if step.plan else []
    found = queries.existing_runs(step.step.kind, (x.model_dump(mode="json") for x in configs))
    return {
        "Already run": [job for job in found if job.state == State.SUCCEEDED],
        "In the queue": [job for job in found if job.state != State.SUCCEEDED],
    }


def first_error(steps: Sequence[PlannedStep]) -> tuple[int, SlimscopeError] | None:
    """The number of the first step that cannot run, and the reason."""
    return next(((n, each.error) for n, each in enumerate(steps) if each.error), None)


def texts_of(steps: Sequence[PlannedStep], name: str) -> list[str]:
    """Notes or warnings of all steps, without duplicates."""
    found = (text for x in steps if x.plan for text in getattr(x.plan.estimate, name))
    return [*dict.fromkeys(found)]
