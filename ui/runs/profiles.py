"""Sensitivity profiles of runs: the best mixes of formats that a profile leaves, finished runs
beside what it predicts, and formats on one ordered scale of colors: the fewer bits are left, the
brighter; dense is gray."""

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
from jobs.profile.profiles import Method, profile_of_run, solver_of
from ui.runs.results import setting_summary
from ui.runs.rows import RunRow, all_rows
from ui.runs.weights import tensor_names
from ui.theme import LIGHT
from ui.widgets.explorer import cached_by

OF_PROFILES: dict[str, Any] = {  # of an `ExplorerPage`
    "profile": SENSITIVITY,
    "kind": NAME,
    "no_run": "No model has been profiled yet. A profile measures what each layer loses in each "
    "format.",
    "ended_first": True,
}
# methods, and what their mixes are ordered by
METHODS: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}
POINTS = 160  # of a front
MOST, MOST_QUEUED = 100, 8  # runs drawn, and of those queued from a state
SCALE, BRIGHTEST, DARKEST = "Plasma", 0.92, 0.2
COLUMNS = 4096  # inputs of the layer formats are ordered by


@cached_by(queries.profiles_mark)
def profile_at(run: str) -> SensitivityProfile | None:
    """The profile of a run so far; None of a run that has none, or whose model is gone."""
    try:
        return profile_of_run(run)
    except SlimscopeError:
        return None


def in_blocks(profile: SensitivityProfile) -> SensitivityProfile:
    """Without embedding and head, and without the formats that are theirs alone."""
    rows = [row for row, x in enumerate(profile.layers) if x.block >= 0]
    known = np.flatnonzero(np.isfinite(profile.figures[rows]).any((0, 1)))
    layers = tuple(profile.layers[row] for row in rows)
    formats = tuple(profile.formats[column] for column in known)
    return replace(
        profile, layers=layers, formats=formats, figures=profile.figures[rows][:, :, known]
    )


def first_to_break(run: str) -> str:
    """The layer that loses most in the format Sensitivity opens with; empty without a profile."""
    whole = profile_at(run)
    if whole is None or not (profile := in_blocks(whole)).layers:
        return ""
    column = int(np.isfinite(profile.figure("kl")).any(0).argmax())  # the first that was measured
    losses = np.nan_to_num(profile.predicted[:, column], posinf=0.0)
    table, layer = layers_table(profile), profile.layers[int(losses.argmax())]
    return tensor_names(table)[layer.name]


def layers_table(profile: SensitivityProfile) -> pd.DataFrame:
    """One row a layer, as maps of layers take them: tensor, block, module, n (of weights)."""
    rows = [(x.name, x.block, x.module, x.weights) for x in profile.layers]
    return pd.DataFrame(rows, columns=["tensor", "block", "module", "n"])


@dataclass(frozen=True)
class MixFront:
    """The best mixes of one method's formats by the kind of budget, the tightest first, and each
    format alone, the fewest bits first."""

    solver: BudgetSolver
    mixes: Mapping[BudgetKind, list[Mix]]
    uniform: dict[Format, Mix]


@cached_by(queries.profiles_mark)
def fronts_of(run: str) -> dict[Method, MixFront]:
    """Those of the methods whose formats the run has profiled."""
    profile, fronts = profile_at(run), dict[Method, MixFront]()
    if profile is None:
        return fronts
    for method, own in METHODS.items():
        try:
            solver = solver_of(profile, method)
        except SlimscopeError:
            continue
        known = {Format(), *in_blocks(profile).formats}
        uniform = {form: solver.uniform(form) for form in ordered(solver.formats) if form in known}
        kinds: tuple[BudgetKind, ...] = (own, "ms") if profile.times else (own,)
        mixes = {kind: solver.front(POINTS, kind) for kind in kinds}
        fronts[method] = MixFront(solver, mixes, uniform)
    return fronts


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run of the same model: place on the horizontal axis, perplexity over dense."""

    run: str
    label: str
    x: float
    ratio: float


def measured_runs(model: str, x_of: Callable[[RunRow], float | None]) -> list[MeasuredRun]:
    """Finished runs of a model that have a place, the newest first."""
    points = []
    for row in all_rows():
        same = row.job.config.get("model") == model
        change = row.figures.change() if row.job.state == State.SUCCEEDED and same else None
        if change is not None and (x := x_of(row)) is not None:
            label = " · ".join(setting_summary(row.job)) or row.job.name
            points.append(MeasuredRun(row.job.run, label, x, 1 + change))
    return points[:MOST]


def quantized_bytes(row: RunRow, layers: Iterable[LinearShape], rest: float) -> float | None:
    """What the bits of a quantized run come to, counted as those of a mix; None of others. `rest`:
    bytes beside the layers."""
    bits = row.figures.final(BITS_PER_WEIGHT)
    if bits is None:
        return None
    return rest + sum(x.weights * (bits if x.block >= 0 else 16) / 8 for x in layers)


def queued_runs(model: str) -> list[dict[str, Any]]:
    """The newest runs queued from a state of a model: predicted, measured, what came out."""
    known = [(row.job, queued_state(row.job.environment or {})) for row in all_rows()]
    return [
        {"run": job.run, "at": job.shown_state, "final": over_dense(job.run)}
        | state.model_dump(exclude={"model"})
        for job, state in known
        if state is not None and state.model == model
    ][:MOST_QUEUED]


def over_dense(run: str) -> float | None:
    """Perplexity of what a run keeps over that of the dense model; one that began with another run
    has measured over that."""
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
    """Those with the fewest bits first, dense last."""
    return sorted(formats, key=lambda form: form.bits_per_weight(COLUMNS) - form.sparsity)


def format_colors(formats: Sequence[Format]) -> dict[Format, str]:
    """Format -> color, in order; quantized and pruned ones each span the whole scale."""
    colors = dict.fromkeys(formats, LIGHT.muted)
    for quantized in (True, False):
        same = [x for x in ordered(formats) if x.quantized == quantized and x != Format()]
        step = (BRIGHTEST - DARKEST) / max(1, len(same) - 1)
        places = [BRIGHTEST - step * place for place in range(len(same))]
        colors |= zip(same, sample_colorscale(SCALE, places), strict=True)
    return {form: colors[form] for form in ordered(formats)}


def short_labels(formats: Sequence[Format]) -> list[str]:
    """As short as they can be told apart: "3" of widths, "50%" of patterns."""
    bits = [str(x.width.bits) if x.width else "16" for x in formats]
    short = len({*bits}) == len(bits) and not any(x.pattern for x in formats)
    words = [str(x) if x != Format() else "dense" for x in formats]
    return bits if short else words
