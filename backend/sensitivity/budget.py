"""The mix of formats that is best under a budget (`backend.budget`). Does not import torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, log

import numpy as np

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.sensitivity.allocation import Choices, Table, best_quality, cheapest, grouped
from backend.sensitivity.profile import QKV, Format, SensitivityProfile

EMBEDDING = "embedding"  # and a head of its own
EXPERT = re.compile(r"(\.experts)\.\d+\.")  # all of a block share a format: one kernel runs them
HEAD = "int8-g32"  # what the decoder rounds the head of a quantized model to
STEPS = {"size": 1e4, "bits": 0.01, "sparsity": 1e-3, "ms": 0.01}  # in which budgets are proposed


@dataclass(frozen=True)
class Mix:
    """A format for each layer, and what it comes to.

    Attributes:
        formats: full name of a layer -> format.
        nbytes: of the layers and the rest; `loss`: predicted, nats a token.
        sparsity: share of zeros in the layers; `bits`: a weight of theirs takes.
        milliseconds: predicted, of a token in the decoder; None where the profile has no times.
    """

    formats: Mapping[str, Format]
    nbytes: float
    loss: float
    sparsity: float
    bits: float
    milliseconds: float | None

    @property
    def ratio(self) -> float:
        """Predicted perplexity over the dense model's."""
        return float(np.exp(self.loss))

    def budget(self, kind: BudgetKind) -> Budget:
        """The tightest round one of that kind, but for loss, that it keeps."""
        taken = {"size": self.nbytes, "bits": self.bits, "ms": self.milliseconds or 0.0}
        if kind == "sparsity":
            return Budget(kind, floor(self.sparsity / STEPS[kind] + 1e-6) * STEPS[kind])
        return Budget(kind, ceil(taken[kind] / STEPS[kind] - 1e-9) * STEPS[kind])


class BudgetSolver:
    """The mixes that a profile leaves.

    Args:
        fixed: bytes of the model beside the layers.
        formats: those allowed, None: all that the profile has; 16 bits always are.
        loss: predicted loss of each layer in each format of the profile; None: the profile's own.
    """

    def __init__(
        self,
        profile: SensitivityProfile,
        fixed: float = 0.0,
        formats: frozenset[Format] | None = None,
        loss: Table | None = None,
    ) -> None:
        self.profile, self.fixed = profile, fixed
        kept = [at for at, x in enumerate(profile.formats) if formats is None or x in formats]
        self.formats = (Format(), *(profile.formats[at] for at in kept))
        losses = profile.predicted if loss is None else loss
        dense = np.zeros((len(profile.layers), 1))
        self._loss = np.concatenate([dense, losses[:, kept]], 1)
        self._columns = {form: column for column, form in enumerate(self.formats)}
        self._named = {str(form): form for form in self.formats}
        self._inside = np.array([x.block >= 0 for x in profile.layers])
        self._weights = np.array([x.weights for x in profile.layers])
        self._linears = int(self._weights[self._inside].sum())

    def choices(self, kind: BudgetKind) -> Choices:
        """What each layer costs under a budget of that kind."""
        ties = self._ties(kind)
        items, costs = grouped(ties, np.where(np.isfinite(self._loss), self._costs(kind), np.inf))
        _, losses = grouped(ties, self._loss)
        return Choices(items, tuple(map(str, self.formats)), costs, losses)

    def _ties(self, kind: BudgetKind) -> list[str]:
        return [_tie(layer, kind) for layer in self.profile.layers]

    def _costs(self, kind: BudgetKind) -> Table:
        """What each layer costs in each format, layers by formats: bytes, zeros (below 0), or
        milliseconds. Raises ConfigError: the profile has no times."""
        if kind == "ms":
            return self._rates * self._shares[:, None]
        if kind == "sparsity":
            return -np.outer(self._weights, [form.sparsity for form in self.formats])
        counted = self._inside | (kind != "bits")  # what is outside counts in files alone
        return self._bytes * counted[:, None]

    @cached_property
    def _bytes(self) -> Table:
        layers = self.profile.layers
        return np.array([[f.nbytes(x.rows, x.columns) for f in self.formats] for x in layers])

    @cached_property
    def _rates(self) -> Table:
        """Milliseconds of a token if all layers were in that format, and of a head what it adds."""
        times = self.profile.times
        if times is None:
            what = f"{self.profile.run} has not timed its formats."
            why = "That takes a processor, a model the native decoder runs, and memory for it."
            again = f"slimscope submit profile --model {self.profile.model[:80]}"
            raise ConfigError(what, why, f"Give a size, or profile again: {again}", "allocation")
        inside, outside = (
            [known.get(str(form), np.inf) for form in self.formats]
            for known in (times.layers, times.head)
        )
        if any(form.quantized for form in self.formats):
            outside[0] = times.head.get(HEAD, outside[0])
        return np.where(self._inside[:, None], inside, outside)

    @cached_property
    def _shares(self) -> Table:
        """Of each layer, in the weights of the blocks or in those outside."""
        outside = self._weights.sum() - self._linears
        return self._weights / np.where(self._inside, self._linears, outside)

    def solve(self, budget: Budget, pins: Mapping[str, str] | None = None) -> Mix:
        """The best mix under a budget. Raises ConfigError: none is within it; says the nearest."""
        kind, names = budget.kind, (x.name for x in self.profile.layers)
        tied = dict(zip(names, self._ties(kind), strict=True))
        held = {tied.get(name, name): form for name, form in (pins or {}).items()}
        choices = self.choices(kind).pinned(held)
        if kind == "loss":
            return self._mix(kind, cheapest(choices, log(1 + budget.value)))
        self._require_within(budget, choices)
        return self._mix(kind, best_quality(choices, self._limit(budget)))

    def _limit(self, budget: Budget) -> float:
        """What the sum of costs may be; of budgets that are not of loss."""
        limits = {
            "size": budget.value - self.fixed,
            "bits": budget.value * self._linears / 8,
            "sparsity": -budget.value * self._linears,
            "ms": budget.value,
        }
        return limits[budget.kind] + 1e-9 * (1 if budget.kind == "ms" else self._linears)

    def _require_within(self, budget: Budget, choices: Choices) -> None:
        pruned = budget.kind == "sparsity"
        least, most = (
            self._of_front(budget.kind, choices, at).budget(budget.kind)
            for at in (0, len(choices.front.cost) - 1)
        )
        tight, loose = (least, budget) if pruned else (budget, least)
        if tight.value < loose.value * (1 - 1e-9):  # which are read back with an error
            what = f"A budget of {budget} cannot be kept."
            why = f"The cheapest mix of the profile's formats takes {least}."
            more = "less" if pruned else "more, or profile cheaper formats"
            raise ConfigError(what, why, f"Choose {least} or {more}.", "allocation")
        if not pruned and budget.value > most.value * (1 + 1e-9):
            raise ConfigError(
                f"A budget of {budget} is more than the model takes.",
                f"Its best mix takes {most}, and nothing is gained beyond.",
                f"Choose {most} or less.",
                "allocation",
            )

    def _of_front(self, kind: BudgetKind, choices: Choices, at: int) -> Mix:
        chosen = (choices.formats[form] for form in choices.front.choice(at))
        return self._mix(kind, dict(zip(choices.items, chosen, strict=True)))

    def _mix(self, kind: BudgetKind, formats: Mapping[str, str]) -> Mix:
        """The mix of a format for each of the layers that are tied."""
        pairs = zip(self.profile.layers, self._ties(kind), strict=True)
        return self.mix({x.name: self._named[formats[tied]] for x, tied in pairs})

    def mix(self, formats: Mapping[str, Format]) -> Mix:
        """What a map comes to."""
        chosen = [self._columns[formats[x.name]] for x in self.profile.layers]
        at = np.arange(len(chosen)), chosen
        nbytes, zeros = self._bytes[at], -self._costs("sparsity")[at].sum()
        return Mix(
            formats,
            float(nbytes.sum() + self.fixed),
            float(self._loss[at].sum()),
            float(zeros / self._linears),
            float(8 * nbytes[self._inside].sum() / self._linears),
            self._milliseconds(chosen) if self.profile.times else None,
        )

    def _milliseconds(self, chosen: Sequence[int]) -> float | None:
        """Of a token: what is one matrix is read in the slowest of its formats."""
        _, matrix = np.unique(self._ties("ms"), return_inverse=True)
        slowest = np.full(len(matrix), -np.inf)
        np.maximum.at(slowest, matrix, self._rates[np.arange(len(chosen)), chosen])
        taken = float(self._shares @ slowest[matrix])
        return taken if np.isfinite(taken) else None

    def uniform(self, form: Format) -> Mix:
        """All layers in one format; those it does not fit stay dense."""
        fits = np.isfinite(self._loss[:, self.formats.index(form)])
        pairs = zip(self.profile.layers, fits, strict=True)
        return self.mix({x.name: form if fit else Format() for x, fit in pairs})

    def front(self, points: int = 200, kind: BudgetKind = "size") -> list[Mix]:
        """The best mixes under all budgets of a kind, the tightest first, at most about `points` of
        them. Raises ConfigError: the profile has no such costs."""
        choices = self.choices(kind)
        steps = np.unique(np.linspace(0, len(choices.front.cost) - 1, points).round().astype(int))
        return [self._of_front(kind, choices, step) for step in steps.tolist()]


def _tie(layer: LinearShape, kind: BudgetKind) -> str:
    """What all layers have in common that must share a format under a budget of that kind."""
    if layer.block < 0:
        return EMBEDDING
    expert = EXPERT.sub(r"\1.*.", layer.name)
    return QKV.sub(".qkv", expert) if kind == "ms" else expert
