"""The mixes of formats that a profile leaves, what was measured beside them, and the budget."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError, SlimscopeError
from backend.models.families.stored import LinearShape
from backend.sensitivity.budget import Mix
from backend.sensitivity.profile import SensitivityProfile
from backend.store.states import State
from jobs.metrics import BITS_PER_WEIGHT, ZERO_SHARE
from jobs.profile.profiles import WEIGHTS_MARK, Method, budget_method, newest_profile
from ui.format import of_unit, share
from ui.runs.profiles import (
    METHOD_BUDGETS,
    MeasuredRun,
    MixFront,
    fronts_of,
    in_blocks,
    measured_runs,
    profile_at,
    quantized_bytes,
)
from ui.runs.results import find_job
from ui.runs.rows import RunRow
from ui.widgets.explorer import Selection

TITLES: Mapping[Method, str] = {"quantized": "Quantized", "pruned": "Pruned"}
USUAL, HALF = Budget("loss", 0.1), Budget("sparsity", 0.5)
LEAST = 0.01  # share of zeros that makes a run pruned


@dataclass(frozen=True)
class Landmark:
    """A file: its megabytes, and its perplexity over dense with the 95 % interval."""

    file: str
    megabytes: float
    ratio: float
    low: float
    high: float


@cache
def landmarks_file() -> dict[str, Any]:
    """The files by the fingerprint of their model's weights, and how they were measured."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("landmarks.json").read_text())
    return found


@dataclass(frozen=True)
class Across:
    """What lies on the horizontal axis: a title, the kind of its budgets, the place of a mix, and
    that place in words."""

    title: str
    kind: BudgetKind
    x_of: Callable[[Mix], float]
    said: Callable[[float], str]


SIZE = Across("Size, MB", "size", lambda mix: mix.nbytes / 1e6, lambda x: of_unit(x, "MB", 3))
ZEROS = Across(
    "Zeros in the layers, %",
    "sparsity",
    lambda mix: 100 * mix.sparsity,
    lambda x: f"{share(x / 100)} zeros",
)
SPEED = Across(
    "Tokens a second, predicted",
    "ms",
    lambda mix: 1e3 / (mix.milliseconds or float("inf")),
    lambda x: of_unit(x, "tokens/s", 3),
)


@dataclass(frozen=True)
class TradeoffSelection(Selection):
    """A method, what lies across, and a budget as it was typed."""

    method: str = ""
    across: str = ""
    budget: str = ""


@dataclass(frozen=True)
class TradeoffView:
    """A selection with a run and a method that are there."""

    selection: TradeoffSelection
    profile: SensitivityProfile
    fronts: Mapping[Method, MixFront]

    @classmethod
    def at(cls, selection: TradeoffSelection) -> "TradeoffView | None":
        """None where the run is no finished profile."""
        job = find_job(selection.run)
        profile = profile_at(selection.run) if job and job.state == State.SUCCEEDED else None
        fronts = fronts_of(selection.run) if profile else None
        if profile is None or not fronts:
            return None
        across = selection.across if profile.times and selection.across == "ms" else ""
        selection = replace(selection, across=across, budget=selection.budget or str(USUAL))
        if selection.method in fronts:
            return cls(selection, profile, fronts)
        return cls(replace(selection, method=next(iter(fronts))), profile, fronts).for_budget()

    @property
    def method(self) -> Method:
        return next(method for method in METHOD_BUDGETS if method == self.selection.method)

    @property
    def front(self) -> MixFront:
        return self.fronts[self.method]

    @property
    def pruned(self) -> bool:
        return self.method == "pruned"

    @property
    def across(self) -> Across:
        if self.selection.across:
            return SPEED
        return ZEROS if self.pruned else SIZE

    @property
    def mixes(self) -> list[Mix]:
        """The best ones along the axis."""
        return self.front.mixes[self.across.kind]

    @property
    def landmarks(self) -> list[Landmark]:
        """llama.cpp's files of the same weights, where the axis is their size."""
        job = find_job(self.selection.run)
        known = job is not None and self.across is SIZE
        mark = str(job.environment.get(WEIGHTS_MARK)) if job and known else ""
        return [Landmark(**one) for one in landmarks_file()["models"].get(mark, [])]

    def for_budget(self) -> "TradeoffView":
        """With the method that the budget is of, where the profile has its formats."""
        asked = read_budget(self.selection.budget)
        method = budget_method(asked, self.method) if isinstance(asked, Budget) else self.method
        if method not in self.fronts:
            return self
        return replace(self, selection=replace(self.selection, method=method))

    def for_method(self) -> "TradeoffView":
        """With a budget that the method's formats can have."""
        asked = read_budget(self.selection.budget)
        if not isinstance(asked, Budget) or budget_method(asked, self.method) == self.method:
            return self
        budget = HALF if self.pruned else USUAL
        return replace(self, selection=replace(self.selection, budget=str(budget)))

    @cached_property
    def answer(self) -> tuple[Budget, Mix] | SlimscopeError:
        """The budget and its best mix, or why there is none."""
        asked = read_budget(self.selection.budget)
        if not isinstance(asked, Budget):
            return asked
        if (of := budget_method(asked, self.method)) != self.method:
            what = f"A budget of {asked} is not for {TITLES[self.method].lower()} formats."
            return ConfigError(what, do=f"Choose {TITLES[of]} above, or write another.")
        try:
            return asked, self.front.solver.solve(asked)
        except ConfigError as error:
            return error

    @cached_property
    def blocks(self) -> SensitivityProfile:
        """The layers of the blocks."""
        return in_blocks(self.profile)

    @property
    def outside(self) -> list[LinearShape]:
        """Those outside of the blocks: embedding and head."""
        return [x for x in self.profile.layers if x.block < 0]

    @property
    def newest(self) -> str:
        """The profile that a new run would take; empty where it would be refused."""
        try:
            return newest_profile(self.profile.model).run
        except SlimscopeError:
            return ""

    @cached_property
    def measured(self) -> list[MeasuredRun]:
        """Finished runs of the same model with the figure of the axis, the newest first."""
        return measured_runs(self.profile.model, self._x_of_run)

    def _x_of_run(self, row: RunRow) -> float | None:
        if self.across is SPEED:
            return None  # theirs is told by benchmarks, on other prompts
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
