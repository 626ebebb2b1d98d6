"""The mix of formats that is best under a budget (`backend.budget`). Does not import torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, log

import numpy as np

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError
from backend.sensitivity.allocation import Choices, Table, best_quality, cheapest, grouped
from backend.sensitivity.formats import Format
from backend.sensitivity.profile import ProfiledLayer, SensitivityProfile
from backend.sensitivity.times import QKV

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
        self, profile: SensitivityProfile, fixed: float = 0.0,
        formats: frozenset[Format] | None = None, loss: Table | None = None,
    ) -> None:  # fmt: skip
        self.profile, self.fixed = profile, fixed
        kept = [at for at, x in enumerate(profile.formats) if formats is None or x in formats]
        self.formats = (Format(), *(profile.formats[at] for at in kept))
        losses = profile.predicted if loss is None else loss
        dense = np.zeros((len(profile.layers), 1))
        self._loss = np.concatenate([dense, losses[:, kept]], 1)
        self._columns = {form: at for at, form in enumerate(self.formats)}
        self._named = {str(form): form for form in self.formats}

    @cached_property
    def _weights(self) -> tuple[int, int]:
        """Of the layers of the blocks, and outside."""
        inside = sum(x.weights for x in self.profile.layers if x.block >= 0)
        return inside, sum(x.weights for x in self.profile.layers) - inside

    def possible(self, name: str) -> list[Format]:
        """The formats that a layer can take."""
        row = next(row for row, x in enumerate(self.profile.layers) if x.name == name)
        return [form for form, loss in zip(self.formats, self._loss[row], strict=True)
                if np.isfinite(loss)]  # fmt: skip

    def choices(self, kind: BudgetKind) -> Choices:
        """What each layer costs under a budget of that kind."""
        layers, ties = self.profile.layers, self._ties(kind)
        cost = np.array([[self.cost(kind, x, form) for form in self.formats] for x in layers])
        items, costs = grouped(ties, np.where(np.isfinite(self._loss), cost, np.inf))
        _, losses = grouped(ties, self._loss)
        return Choices(items, tuple(map(str, self.formats)), costs, losses)

    def _ties(self, kind: BudgetKind) -> list[str]:
        return [tie(layer, kind) for layer in self.profile.layers]

    def cost(self, kind: BudgetKind, layer: ProfiledLayer, form: Format) -> float:
        """What a layer in a format costs: bytes, zeros (below 0), or milliseconds.

        Raises:
            ConfigError: the profile has no times.
        """
        if kind == "ms":
            return self._milliseconds(layer, form)
        if kind == "sparsity":
            return -form.sparsity * layer.weights
        if kind == "bits" and layer.block < 0:
            return 0.0  # counts in files alone
        return form.nbytes(layer.rows, layer.columns)

    def _milliseconds(self, layer: ProfiledLayer, form: Format) -> float:
        times = self.profile.times
        if times is None:
            raise ConfigError(
                f"{self.profile.run} has not timed its formats.",
                "That is done where the native decoder runs the model on a processor, and it fits "
                "into memory.",
                f"Give a size, or profile again: slimscope submit profile --model "
                f"{self.profile.model[:80]}",
                field="allocation",
            )
        if layer.block >= 0:
            return times.layers.get(str(form), np.inf) * layer.weights / self._weights[0]
        read = str(form)
        if form == Format() and HEAD in times.head and any(x.quantized for x in self.formats):
            read = HEAD
        return times.head.get(read, np.inf) * layer.weights / self._weights[1]

    def solve(self, budget: Budget, pins: Mapping[str, str] | None = None) -> Mix:
        """The best mix under a budget. Raises ConfigError: none is within it; says the nearest."""
        kind, names = budget.kind, (x.name for x in self.profile.layers)
        tied = dict(zip(names, self._ties(kind), strict=True))
        held = {tied.get(name, name): form for name, form in (pins or {}).items()}
        choices = self.choices(kind).pinned(held)
        if kind == "loss":
            return self._mix(kind, cheapest(choices, log(1 + budget.value)).formats)
        self._require_within(budget, choices)
        return self._mix(kind, best_quality(choices, self.limit(budget)).formats)

    def limit(self, budget: Budget) -> float:
        """What the sum of costs may be; of budgets that are not of loss."""
        weights = self._weights[0]
        limits = {
            "size": budget.value - self.fixed,
            "bits": budget.value * weights / 8,
            "sparsity": -budget.value * weights,
            "ms": budget.value * (1 + 1e-9),
        }
        return limits[budget.kind] + (0 if budget.kind == "ms" else 1e-9 * weights)

    def _require_within(self, budget: Budget, choices: Choices) -> None:
        pruned = budget.kind == "sparsity"
        least, most = (
            self._of_front(budget.kind, choices, at).budget(budget.kind)
            for at in (0, len(choices.front.cost) - 1)
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

    def _of_front(self, kind: BudgetKind, choices: Choices, at: int) -> Mix:
        chosen = (choices.formats[form] for form in choices.front.choice(at))
        return self._mix(kind, dict(zip(choices.items, chosen, strict=True)))

    def _mix(self, kind: BudgetKind, formats: Mapping[str, str]) -> Mix:
        """The mix of a format for each of the layers that are tied."""
        pairs = zip(self.profile.layers, self._ties(kind), strict=True)
        return self.mix({x.name: self._named[formats[tied]] for x, tied in pairs})

    def mix(self, formats: Mapping[str, Format]) -> Mix:
        """What a map comes to."""
        layers, weights = self.profile.layers, self._weights[0]
        nbytes = {x: formats[x.name].nbytes(x.rows, x.columns) for x in layers}
        bits = 8 * sum(n for x, n in nbytes.items() if x.block >= 0) / weights
        zeros = sum(formats[x.name].sparsity * x.weights for x in layers)
        loss = sum(self._loss[row, self._columns[formats[x.name]]] for row, x in enumerate(layers))
        nbytes_of_all = sum(nbytes.values()) + self.fixed
        taken = self._taken(formats)
        return Mix(formats, nbytes_of_all, float(loss), zeros / weights, bits, taken)

    def _taken(self, formats: Mapping[str, Format]) -> float | None:
        """Milliseconds of a token: what is one matrix is read in the slowest of its formats."""
        if self.profile.times is None:
            return None
        together: dict[str, list[ProfiledLayer]] = {}
        for layer, tied in zip(self.profile.layers, self._ties("ms"), strict=True):
            together.setdefault(tied, []).append(layer)
        taken = sum(
            max(sum(self._milliseconds(x, formats[one.name]) for x in layers) for one in layers)
            for layers in together.values()
        )
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


def tie(layer: ProfiledLayer, kind: BudgetKind = "size") -> str:
    """What all layers have in common that must share a format under a budget of that kind."""
    if layer.block < 0:
        return EMBEDDING
    expert = EXPERT.sub(r"\1.*.", layer.name)
    return QKV.sub(".qkv", expert) if kind == "ms" else expert
