"""Sensitivity profiles of runs: best mixes of formats, and finished runs for comparison with the
predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.budget import BudgetKind
from backend.errors import SlimscopeError
from backend.live.address import queued_state
from backend.models.families.stored import LinearShape
from backend.pruning.pattern import Pattern
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import Format, SensitivityProfile
from backend.store import queries
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT, ZERO_SHARE
from jobs.profile.profiles import Method, budget_solver, read_profile
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows
from ui.runs.weights import layer_label
from ui.widgets.explorer import cached_by

# the budget by which each method's mixes are ordered
METHOD_BUDGETS: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}
FRONT_POINTS = 160  # mixes of one front
MIXED_SHARE = 0.02  # deviation of the zeros of a run from its pattern that tells a mix
MAX_RUNS, MAX_QUEUED = 100, 8  # finished runs in a chart; listed runs that began with a live model


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile a run has measured so far; None without a profile, or if its model is missing."""
    try:
        return read_profile(run)
    except SlimscopeError:
        return None


def first_to_break(run: str) -> str:
    """The layer with the highest loss in the first measured format; empty without a profile."""
    profile = profile_at(run)
    inside = [at for at, x in enumerate(profile.layers) if x.block >= 0] if profile else []
    if profile is None or not inside:
        return ""
    column = int(np.isfinite(profile.figure("kl")[inside]).any(0).argmax())
    losses = np.nan_to_num(profile.predicted[inside, column], posinf=0.0)
    layer = profile.layers[inside[int(losses.argmax())]]
    return layer_label(layer.block, layer.module)


@dataclass(frozen=True)
class MixFront:
    """Best mixes of one method's formats.

    Attributes:
        solver: the solver of the profile and method.
        mixes: best mixes by kind of budget, the smallest budget first.
    """

    solver: BudgetSolver
    mixes: Mapping[BudgetKind, list[Mix]]


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
        kinds: tuple[BudgetKind, ...] = (budget, "ms") if profile.times else (budget,)
        mixes = {kind: solver.front(FRONT_POINTS, kind) for kind in kinds}
        fronts[method] = MixFront(solver, mixes)
    return fronts


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run of the same model, as a point of a chart.

    Attributes:
        run: name of the run.
        label: its settings.
        nbytes: size of its model, computed like that of a mix.
        ratio: perplexity relative to the dense model.
    """

    run: str
    label: str
    nbytes: float
    ratio: float


def measured_runs(
    model: str, layers: Sequence[LinearShape], other_bytes: float
) -> list[MeasuredRun]:
    """Finished runs of a model whose size is known, newest first.

    Args:
        layers: layers of the model, embedding and head included.
        other_bytes: bytes of all tensors other than `layers`.
    """
    points = []
    for row in all_rows():
        matches = row.job.config.get("model") == model
        change = row.figures.change() if row.job.state == State.SUCCEEDED and matches else None
        nbytes = run_bytes(row, layers, other_bytes) if change is not None else None
        if change is not None and nbytes is not None:
            label = " · ".join(setting_summary(row.job)) or row.job.name
            points.append(MeasuredRun(row.job.run, label, nbytes, 1 + change))
    return points[:MAX_RUNS]


def run_bytes(row: RunRow, layers: Sequence[LinearShape], other_bytes: float) -> float | None:
    """Size in bytes of a run's model, computed like that of a mix; None if its layers are neither
    quantized nor pruned to one pattern."""
    bits, zeros = row.figures.final(BITS_PER_WEIGHT), row.figures.final(ZERO_SHARE)
    if bits is not None:
        layer_bytes = (x.weights * (bits if x.block >= 0 else 16) / 8 for x in layers)
        # the file is smaller if its embedding is quantized, larger if it holds dense weights
        return min(other_bytes + sum(layer_bytes), row.figures.saved_bytes or math.inf)
    try:
        pruned = Format(pattern=Pattern.parse(str(row.job.config.get("pattern"))))
    except ValueError:
        return None
    if zeros is None or abs(zeros - pruned.sparsity) > MIXED_SHARE:
        return None
    forms = ((x, pruned if x.block >= 0 else Format()) for x in layers)
    return other_bytes + sum(form.nbytes(x.rows, x.columns) for x, form in forms)


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
