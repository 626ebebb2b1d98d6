"""The mixes of formats that a profile leaves, what was measured beside them, and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, floor

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import SensitivityProfile
from backend.store import queries
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT, ZERO_SHARE
from jobs.profile.budgets import Method, method_of, solver_of
from jobs.profile.profiles import newest_profile
from ui.charts.formats import ordered
from ui.runs.results import find_job
from ui.runs.rows import RunRow
from ui.runs.sensitivity.measured import MeasuredRun, measured_runs, quantized_bytes
from ui.runs.sensitivity.profiles import in_blocks, profile_at
from ui.widgets.explorer import Selection, cached_by

METHODS: Mapping[Method, str] = {"quantized": "Quantised", "pruned": "Pruned"}
KIND: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}  # of the front
USUAL = Budget("loss", 0.1)
POINTS = 80  # of a front
LEAST = 0.01  # share of zeros that makes a run pruned


@dataclass(frozen=True)
class MixFront:
    """The best mixes of one method's formats, and each format alone, the fewest bits first."""

    solver: BudgetSolver
    mixes: list[Mix]
    uniform: dict[Format, Mix]


@cached_by(queries.profiles_mark)
def fronts_of(run: str) -> dict[Method, MixFront]:
    """Those of the methods whose formats the run has profiled."""
    profile, fronts = profile_at(run), dict[Method, MixFront]()
    if profile is None:
        return fronts
    for method in METHODS:
        try:
            solver = solver_of(profile, method)
        except SlimscopeError:
            continue
        known = {Format(), *in_blocks(profile).formats}
        uniform = {form: solver.uniform(form) for form in ordered(solver.formats) if form in known}
        fronts[method] = MixFront(solver, solver.front(POINTS, KIND[method]), uniform)
    return fronts


@dataclass(frozen=True)
class TradeoffSelection(Selection):
    """A method, and a budget as it was typed."""

    method: str = ""
    budget: str = ""


@dataclass(frozen=True)
class TradeoffView:
    """A selection with a run and a method that are there."""

    selection: TradeoffSelection
    profile: SensitivityProfile
    fronts: Mapping[Method, MixFront]

    @classmethod
    def at(cls, selection: TradeoffSelection) -> TradeoffView | None:
        """None where the run is no finished profile."""
        job = find_job(selection.run)
        profile = profile_at(selection.run) if job and job.state == State.SUCCEEDED else None
        fronts = fronts_of(selection.run) if profile else None
        if profile is None or not fronts:
            return None
        selection = replace(selection, budget=selection.budget or str(USUAL))
        if selection.method in fronts:
            return cls(selection, profile, fronts)
        return cls(replace(selection, method=next(iter(fronts))), profile, fronts).for_budget()

    @property
    def method(self) -> Method:
        return next(method for method in METHODS if method == self.selection.method)

    @property
    def front(self) -> MixFront:
        return self.fronts[self.method]

    @property
    def pruned(self) -> bool:
        return self.method == "pruned"

    def for_budget(self) -> TradeoffView:
        """With the method that the budget is of, where the profile has its formats."""
        asked = read_budget(self.selection.budget)
        method = method_of(asked, self.method) if isinstance(asked, Budget) else self.method
        if method not in self.fronts:
            return self
        return replace(self, selection=replace(self.selection, method=method))

    @cached_property
    def answer(self) -> tuple[Budget, Mix] | SlimscopeError:
        """The budget and its best mix, or why there is none."""
        asked = read_budget(self.selection.budget)
        if not isinstance(asked, Budget):
            return asked
        if (of := method_of(asked, self.method)) != self.method:
            what = f"A budget of {asked} is not for {METHODS[self.method].lower()} formats."
            return ConfigError(what, do=f"Choose {METHODS[of]} above, or write another.")
        try:
            return asked, self.front.solver.solve(asked)
        except ConfigError as error:
            return error

    @cached_property
    def blocks(self) -> SensitivityProfile:
        """The layers of the blocks."""
        return in_blocks(self.profile)

    @property
    def newest(self) -> str:
        """The profile that a new run would take."""
        try:
            return newest_profile(self.profile.model).run
        except NotFoundError:
            return ""

    def x_of(self, mix: Mix) -> float:
        """Its place on the horizontal axis: MB, or zeros in %."""
        return 100 * mix.sparsity if self.pruned else mix.nbytes / 1e6

    def budget_of(self, mix: Mix) -> str:
        """The budget that asks for it, rounded so that it fits."""
        if self.pruned:
            return str(Budget("sparsity", floor(1000 * mix.sparsity) / 1000))
        return str(Budget("size", ceil(mix.nbytes / 1e4) * 1e4))

    @cached_property
    def measured(self) -> list[MeasuredRun]:
        """Finished runs of the same model with the figure of the axis, the newest first."""
        return measured_runs(self.profile.model, self._x_of_run)

    def _x_of_run(self, row: RunRow) -> float | None:
        if not self.pruned:
            nbytes = quantized_bytes(row, self.profile.layers, self.front.solver.fixed)
            return nbytes and nbytes / 1e6
        zeros = row.figures.final(ZERO_SHARE)
        pruned = row.figures.final(BITS_PER_WEIGHT) is None and zeros and zeros > LEAST
        return 100 * zeros if zeros and pruned else None


def read_budget(text: str) -> Budget | ConfigError:
    try:
        return Budget.parse(text or str(USUAL))
    except ValueError as error:
        return ConfigError(str(error), field="budget")
