"""The best mixes of formats that a profile leaves, for Trade-offs and the Workbench."""

from collections.abc import Mapping
from dataclasses import dataclass

from backend.budget import BudgetKind
from backend.errors import SlimscopeError
from backend.sensitivity.budget import BudgetSolver, Mix
from backend.sensitivity.profile import Format
from backend.store import queries
from jobs.profile.profiles import Method, solver_of
from ui.charts.formats import ordered
from ui.runs.sensitivity.profiles import in_blocks, profile_at
from ui.widgets.explorer import cached_by

# methods, and what their mixes are ordered by
METHODS: Mapping[Method, BudgetKind] = {"quantized": "size", "pruned": "sparsity"}
POINTS = 160  # of a front


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
