"""Sensitivity profiles of runs: best mixes of formats, finished runs for comparison with the
predictions, and colors of formats (the fewer bits, the brighter; dense is gray)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from plotly.colors import sample_colorscale

from backend.budget import BudgetKind
from backend.errors import SlimscopeError
from backend.live.address import queued_state
from backend.models.families.stored import LinearShape
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import Format, SensitivityProfile
from backend.statistics.tensors import SENSITIVITY
from backend.store import queries
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT
from jobs.profile.kind import NAME
from jobs.profile.profiles import Method, budget_solver, read_profile
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows
from ui.runs.weights import tensor_names
from ui.theme import LIGHT
from ui.widgets.explorer import cached_by

PROFILE_PAGE_OPTIONS: dict[str, Any] = {  # arguments of `ExplorerPage`
    "profile": SENSITIVITY,
    "kind": NAME,
    "no_run": "No model has been profiled yet. A profile measures the loss of each layer in each "
    "format.",
    "ended_first": True,
}
# the budget by which each method's mixes are ordered
METHOD_BUDGETS: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}
FRONT_POINTS = 160  # mixes of one front
MAX_RUNS, MAX_QUEUED = 100, 8  # finished runs in a chart; listed runs that began with a live model
COLOR_SCALE, BRIGHTEST, DARKEST = "Plasma", 0.92, 0.2
REFERENCE_WIDTH = 4096  # inputs of the reference layer that orders formats by size


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile a run has measured so far; None without a profile, or if its model is missing."""
    try:
        return read_profile(run)
    except SlimscopeError:
        return None


def in_blocks(profile: SensitivityProfile) -> SensitivityProfile:
    """The part of a profile inside the blocks: no embedding, no head, none of their formats."""
    rows = [row for row, layer in enumerate(profile.layers) if layer.block >= 0]
    measured = np.flatnonzero(np.isfinite(profile.figures[rows]).any((0, 1)))
    layers = tuple(profile.layers[row] for row in rows)
    formats = tuple(profile.formats[column] for column in measured)
    return replace(
        profile, layers=layers, formats=formats, figures=profile.figures[rows][:, :, measured]
    )


def first_to_break(run: str) -> str:
    """The layer with the highest loss in the default format of *Sensitivity*; empty without a
    profile."""
    complete = profile_at(run)
    if complete is None or not (profile := in_blocks(complete)).layers:
        return ""
    column = int(np.isfinite(profile.figure("kl")).any(0).argmax())  # first measured format
    losses = np.nan_to_num(profile.predicted[:, column], posinf=0.0)
    table, layer = layers_table(profile), profile.layers[int(losses.argmax())]
    return tensor_names(table)[layer.name]


def layers_table(profile: SensitivityProfile) -> pd.DataFrame:
    """One row per layer with the columns of a layer map: tensor, block, module, n (weights)."""
    rows = [(layer.name, layer.block, layer.module, layer.weights) for layer in profile.layers]
    return pd.DataFrame(rows, columns=["tensor", "block", "module", "n"])


@dataclass(frozen=True)
class MixFront:
    """Best mixes of one method's formats, and the uniform use of each format.

    Attributes:
        solver: the solver of the profile and method.
        mixes: best mixes by kind of budget, the smallest budget first.
        uniform: the mix of each single format, the fewest bits first.
    """

    solver: BudgetSolver
    mixes: Mapping[BudgetKind, list[Mix]]
    uniform: dict[Format, Mix]


@cached_by(queries.profiles_mark)
def fronts_of(run: str) -> dict[Method, MixFront]:
    """The fronts of the methods whose formats a run has profiled, by method."""
    profile, fronts = profile_at(run), dict[Method, MixFront]()
    if profile is None:
        return fronts
    for method, budget in METHOD_BUDGETS.items():
        try:
            solver = budget_solver(profile, method)
        except SlimscopeError:
            continue
        formats = {Format(), *in_blocks(profile).formats}
        uniform = {
            form: solver.uniform(form) for form in ordered(solver.formats) if form in formats
        }
        kinds: tuple[BudgetKind, ...] = (budget, "ms") if profile.times else (budget,)
        mixes = {kind: solver.front(FRONT_POINTS, kind) for kind in kinds}
        fronts[method] = MixFront(solver, mixes, uniform)
    return fronts


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run of the same model, as a point of a chart.

    Attributes:
        run: name of the run.
        label: its settings.
        x: position on the horizontal axis.
        ratio: perplexity relative to the dense model.
    """

    run: str
    label: str
    x: float
    ratio: float


def measured_runs(model: str, x_of: Callable[[RunRow], float | None]) -> list[MeasuredRun]:
    """Finished runs of a model, newest first.

    Args:
        x_of: horizontal position of a run; None leaves it out.
    """
    points = []
    for row in all_rows():
        matches = row.job.config.get("model") == model
        change = row.figures.change() if row.job.state == State.SUCCEEDED and matches else None
        if change is not None and (x := x_of(row)) is not None:
            label = " · ".join(setting_summary(row.job)) or row.job.name
            points.append(MeasuredRun(row.job.run, label, x, 1 + change))
    return points[:MAX_RUNS]


def quantized_bytes(row: RunRow, layers: Iterable[LinearShape], other_bytes: float) -> float | None:
    """Size in bytes of a quantized run's model, computed like that of a mix; None if not quantized.

    Args:
        other_bytes: bytes of all tensors other than `layers`.
    """
    bits = row.figures.final(BITS_PER_WEIGHT)
    if bits is None:
        return None
    layer_bits = (layer.weights * (bits if layer.block >= 0 else 16) for layer in layers)
    return other_bytes + sum(count / 8 for count in layer_bits)


def queued_runs(model: str) -> list[dict[str, Any]]:
    """The newest runs that were queued from a live model of `model`: state, prediction, result."""
    jobs = [(row.job, queued_state(row.job.environment or {})) for row in all_rows()]
    return [
        {"run": job.run, "at": job.shown_state, "final": perplexity_over_dense(job.run)}
        | state.model_dump(exclude={"model"})
        for job, state in jobs
        if state is not None and state.model == model
    ][:MAX_QUEUED]


def perplexity_over_dense(run: str) -> float | None:
    """Perplexity of a run's kept stage relative to the dense model; None if unknown.

    A run that began with another run's model measured its change relative to that model, so the
    changes along the chain of runs are multiplied."""
    rows, ratio = {row.job.run: row for row in all_rows()}, 1.0
    if run not in rows:
        return None
    while row := rows.pop(run, None):
        change = row.figures.change() if row.job.state == State.SUCCEEDED else None
        if change is None:
            return None
        ratio, run = ratio * (1 + change), str(row.job.config.get("model"))
    return ratio


def ordered(formats: Sequence[Format]) -> list[Format]:
    """Formats sorted by size, the fewest bits first, dense last."""
    return sorted(formats, key=lambda form: form.bits_per_weight(REFERENCE_WIDTH) - form.sparsity)


def format_colors(formats: Sequence[Format]) -> dict[Format, str]:
    """Colors by format, in order; quantized formats and pruned formats each span the scale."""
    colors = dict.fromkeys(formats, LIGHT.muted)
    for quantized in (True, False):
        group = [x for x in ordered(formats) if x.quantized == quantized and x != Format()]
        step = (BRIGHTEST - DARKEST) / max(1, len(group) - 1)
        positions = [BRIGHTEST - step * index for index in range(len(group))]
        colors |= zip(group, sample_colorscale(COLOR_SCALE, positions), strict=True)
    return {form: colors[form] for form in ordered(formats)}


def short_labels(formats: Sequence[Format]) -> list[str]:
    """The shortest labels that distinguish formats: numbers of bits, or else complete names."""
    bits = [str(x.width.bits) if x.width else "16" for x in formats]
    if len({*bits}) == len(bits) and not any(x.pattern for x in formats):
        return bits
    return [str(x) if x != Format() else "dense" for x in formats]
