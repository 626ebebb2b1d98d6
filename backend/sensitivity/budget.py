"""The mix of formats that is best under a budget (`backend.budget`). Does not import torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError
from backend.sensitivity.allocation import (
    Allocation,
    Choices,
    Table,
    best_quality,
    cheapest,
    grouped,
)
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import ProfiledLayer, SensitivityProfile

EMBEDDING = "embedding"  # and a head of its own
EXPERT = re.compile(r"(\.experts)\.\d+\.")  # all of a block share a format: one kernel runs them


@dataclass(frozen=True)
class Mix:
    """A format for each layer, and what it comes to.

    Attributes:
        formats: full name of a layer -> format.
        nbytes: of the layers and the rest; `loss`: predicted, nats a token.
        sparsity: share of zeros in the layers; `bits`: a weight of theirs takes.
    """

    formats: Mapping[str, Format]
    nbytes: float
    loss: float
    sparsity: float
    bits: float

    @property
    def ratio(self) -> float:
        """Predicted perplexity over the dense model's."""
        return float(np.exp(self.loss))


class BudgetSolver:
    """The mixes that a profile leaves.

    Args:
        fixed: bytes of the model beside the layers.
        formats: those allowed, None: all that the profile has; 16 bits always are.
        loss: predicted loss of each layer in each format of the profile; None: the profile's own.
    """

    def __init__(
        self, profile: SensitivityProfile, fixed: float = 0.0,
        formats: frozenset[Format] | None = None, loss: Table | None = None,
    ) -> None:  # fmt: skip
        self.profile, self.fixed = profile, fixed
        kept = [at for at, x in enumerate(profile.formats) if formats is None or x in formats]
        self.formats = (Format(), *(profile.formats[at] for at in kept))
        losses = profile.predicted if loss is None else loss
        dense = np.zeros((len(profile.layers), 1))
        self._loss = np.concatenate([dense, losses[:, kept]], 1)
        self._ties = [tie(layer) for layer in profile.layers]
        self._columns = {form: at for at, form in enumerate(self.formats)}
        self._named = {str(form): form for form in self.formats}

    @property
    def _linears(self) -> int:
        """Weights of the layers of the blocks."""
        return sum(x.weights for x in self.profile.layers if x.block >= 0)

    def possible(self, name: str) -> list[Format]:
        """The formats that a layer can take."""
        row = next(row for row, x in enumerate(self.profile.layers) if x.name == name)
        return [form for form, loss in zip(self.formats, self._loss[row], strict=True)
                if np.isfinite(loss)]  # fmt: skip

    def choices(self, kind: BudgetKind) -> Choices:
        """What each layer costs under a budget of that kind."""
        layers, fits = self.profile.layers, np.isfinite(self._loss)
        cost = np.array([[layer_cost(kind, x, form) for form in self.formats] for x in layers])
        items, costs = grouped(self._ties, np.where(fits, cost, np.inf))
        _, losses = grouped(self._ties, self._loss)
        return Choices(items, tuple(map(str, self.formats)), costs, losses)

    def solve(self, budget: Budget, pins: Mapping[str, str] | None = None) -> Mix:
        """The best mix under a budget. Raises ConfigError: none is within it; says the nearest."""
        tied = dict(zip((x.name for x in self.profile.layers), self._ties, strict=True))
        held = {tied.get(name, name): form for name, form in (pins or {}).items()}
        choices = self.choices(budget.kind).pinned(held)
        if budget.kind == "loss":
            return self._mix(cheapest(choices, log(1 + budget.value)))
        self._require_within(budget, choices)
        return self._mix(best_quality(choices, self.limit(budget)))

    def limit(self, budget: Budget) -> float:
        """What the sum of `layer_cost` may be; of budgets that are not of loss."""
        weights = self._linears
        limits = {
            "size": budget.value - self.fixed,
            "bits": budget.value * weights / 8,
            "sparsity": -budget.value * weights,
        }
        return limits[budget.kind] + 1e-9 * weights

    def _require_within(self, budget: Budget, choices: Choices) -> None:
        front, weights, pruned = choices.front, self._linears, budget.kind == "sparsity"
        least, most = (
            {
                "size": Budget("size", np.ceil((cost + self.fixed) / 1e4) * 1e4),
                "bits": Budget("bits", np.ceil(800 * cost / weights) / 100),
                "sparsity": Budget("sparsity", np.floor(-1000 * cost / weights + 1e-6) / 1000),
            }[budget.kind]
            for cost in (front.cost[0], front.cost[-1])
        )
        beyond = budget.value < least.value * (1 - 1e-9)  # which is read back with an error
        if pruned:
            beyond = budget.value > least.value * (1 + 1e-9)
        if beyond:
            raise ConfigError(
                f"A budget of {budget} cannot be kept.",
                f"The cheapest mix of the profile's formats takes {least}.",
                f"Choose {least} or more, or profile cheaper formats."
                if not pruned else f"Choose {least} or less.",
                field="allocation",
            )  # fmt: skip
        if not pruned and budget.value > most.value * (1 + 1e-9):
            raise ConfigError(
                f"A budget of {budget} is more than the model takes.",
                f"Its best mix takes {most}, and nothing is gained beyond.",
                f"Choose {most} or less.",
                field="allocation",
            )

    def _mix(self, allocation: Allocation) -> Mix:
        formats = {
            x.name: self._named[allocation.formats[tie]]
            for x, tie in zip(self.profile.layers, self._ties, strict=True)
        }
        return self.mix(formats)

    def mix(self, formats: Mapping[str, Format]) -> Mix:
        """What a map comes to."""
        layers, weights = self.profile.layers, self._linears
        nbytes = {x: formats[x.name].nbytes(x.rows, x.columns) for x in layers}
        bits = 8 * sum(n for x, n in nbytes.items() if x.block >= 0) / weights
        zeros = sum(formats[x.name].sparsity * x.weights for x in layers)
        loss = sum(self._loss[row, self._columns[formats[x.name]]] for row, x in enumerate(layers))
        nbytes_of_all = sum(nbytes.values()) + self.fixed
        return Mix(formats, nbytes_of_all, float(loss), zeros / weights, bits)

    def uniform(self, form: Format) -> Mix:
        """All layers in one format; those it does not fit stay dense."""
        fits = np.isfinite(self._loss[:, self.formats.index(form)])
        pairs = zip(self.profile.layers, fits, strict=True)
        return self.mix({x.name: form if fit else Format() for x, fit in pairs})

    def front(self, points: int = 200, kind: BudgetKind = "size") -> list[Mix]:
        """The best mixes under all budgets of a kind, the tightest first, at most about `points` of
        them."""
        front = self.choices(kind).front
        steps = np.unique(np.linspace(0, len(front.cost) - 1, points).round().astype(int))
        ties = [*dict.fromkeys(self._ties)]
        mixes = []
        for step in steps.tolist():
            chosen = (str(self.formats[at]) for at in front.choice(step))
            formats = dict(zip(ties, chosen, strict=True))
            mixes.append(self._mix(Allocation(formats, front.cost[step], front.loss[step])))
        return mixes


def tie(layer: ProfiledLayer) -> str:
    """What all layers have in common that must share a format."""
    return EMBEDDING if layer.block < 0 else EXPERT.sub(r"\1.*.", layer.name)


def layer_cost(kind: BudgetKind, layer: ProfiledLayer, form: Format) -> float:
    if kind == "sparsity":
        return -form.sparsity * layer.weights
    if kind == "bits" and layer.block < 0:
        return 0.0  # counts in files alone
    return form.nbytes(layer.rows, layer.columns)
