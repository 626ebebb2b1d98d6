"""Solver for the best mix of formats under a budget (`backend.budget`). Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, log

import numpy as np

from backend.budget import Budget, BudgetKind
from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.models.memory import EXPERT_NUMBER
from backend.sensitivity.allocation import Choices, Table, best_quality, cheapest, grouped
from backend.sensitivity.profile import QKV, Format, SensitivityProfile

EMBEDDING = "embedding"  # group of the embedding and an untied head
HEAD = "int8-g32"  # format to which the decoder rounds the head of a quantized model
STEPS = {"size": 1e4, "bits": 0.01, "sparsity": 1e-3, "ms": 0.01}  # kind -> step of round budgets


@dataclass(frozen=True)
class Mix:
    """Format of each layer, with the resulting size, loss and time.

    Attributes:
        formats: full layer name -> format.
        nbytes: bytes of the model, including parameters outside the layers.
        loss: predicted loss relative to the dense model, in nats per token.
        sparsity: share of zeros in the layers of the blocks.
        bits: mean bits per weight in the layers of the blocks.
        milliseconds: predicted milliseconds per token in the decoder; None if the profile has no
            times.
    """

    formats: Mapping[str, Format]
    nbytes: float
    loss: float
    sparsity: float
    bits: float
    milliseconds: float | None

    @property
    def ratio(self) -> float:
        """Predicted perplexity relative to that of the dense model."""
        return float(np.exp(self.loss))

    def budget(self, kind: BudgetKind) -> Budget:
        """Tightest round budget of this kind that the mix satisfies; any kind except loss."""
        costs = {"size": self.nbytes, "bits": self.bits, "ms": self.milliseconds or 0.0}
        if kind == "sparsity":
            return Budget(kind, floor(self.sparsity / STEPS[kind] + 1e-6) * STEPS[kind])
        return Budget(kind, ceil(costs[kind] / STEPS[kind] - 1e-9) * STEPS[kind])


class BudgetSolver:
    """Solver for mixes of the formats of a profile.

    Args:
        profile: sensitivity profile of the model.
        fixed: bytes of the model outside the layers.
        formats: allowed formats; None for all formats of the profile. 16 bits are always allowed.
        loss: predicted loss of each layer in each format of the profile; None for
            `profile.predicted`.
    """

    def __init__(
        self,
        profile: SensitivityProfile,
        fixed: float = 0.0,
        formats: frozenset[Format] | None = None,
        loss: Table | None = None,
    ) -> None:
        self.profile, self.fixed = profile, fixed
        columns = [n for n, x in enumerate(profile.formats) if formats is None or x in formats]
        self.formats = (Format(), *(profile.formats[n] for n in columns))
        losses = profile.predicted if loss is None else loss
        dense = np.zeros((len(profile.layers), 1))
        self._loss = np.concatenate([dense, losses[:, columns]], 1)
        self._columns = {fmt: column for column, fmt in enumerate(self.formats)}
        self._formats_by_name = {str(fmt): fmt for fmt in self.formats}
        self._in_blocks = np.array([x.block >= 0 for x in profile.layers])
        self._weights = np.array([x.weights for x in profile.layers])
        self._block_weights = int(self._weights[self._in_blocks].sum())

    def choices(self, kind: BudgetKind) -> Choices:
        """Costs and losses of all layers under a budget of this kind."""
        groups = self._groups(kind)
        costs = np.where(np.isfinite(self._loss), self._costs(kind), np.inf)
        items, group_costs = grouped(groups, costs)
        _, group_losses = grouped(groups, self._loss)
        return Choices(items, tuple(map(str, self.formats)), group_costs, group_losses)

    def _groups(self, kind: BudgetKind) -> list[str]:
        return [_group_of(layer, kind) for layer in self.profile.layers]

    def _costs(self, kind: BudgetKind) -> Table:
        """Cost of each layer in each format [layers, formats]: bytes, minus the number of zeros, or
        milliseconds.

        Raises:
            ConfigError: the profile has no times.
        """
        if kind == "ms":
            return self._rates * self._shares[:, None]
        if kind == "sparsity":
            return -np.outer(self._weights, [fmt.sparsity for fmt in self.formats])
        # Layers outside the blocks count for the size of the file only.
        counted = self._in_blocks | (kind != "bits")
        return self._bytes * counted[:, None]

    @cached_property
    def _bytes(self) -> Table:
        layers = self.profile.layers
        return np.array([[f.nbytes(x.rows, x.columns) for f in self.formats] for x in layers])

    @cached_property
    def _rates(self) -> Table:
        """Milliseconds per token [layers, formats] with all layers of the blocks in a format; for
        the head, the difference to a 16-bit head."""
        times = self.profile.times
        if times is None:
            command = f"slimscope submit profile --model {self.profile.model[:80]}"
            raise ConfigError(
                f"{self.profile.run} did not measure decoding times.",
                "Timing needs the native decoder: a supported CPU, model and enough memory.",
                f"Choose a budget of size, or profile again: {command}",
                "allocation",
            )
        block_times, head_times = (
            [times_by_name.get(str(fmt), np.inf) for fmt in self.formats]
            for times_by_name in (times.layers, times.head)
        )
        if any(fmt.quantized for fmt in self.formats):
            head_times[0] = times.head.get(HEAD, head_times[0])
        return np.where(self._in_blocks[:, None], block_times, head_times)

    @cached_property
    def _shares(self) -> Table:
        """Share of each layer in the weights of all blocks, or of all layers outside the blocks."""
        outside_weights = self._weights.sum() - self._block_weights
        return self._weights / np.where(self._in_blocks, self._block_weights, outside_weights)

    def solve(self, budget: Budget, pins: Mapping[str, str] | None = None) -> Mix:
        """Find the best mix under a budget.

        Args:
            budget: budget to satisfy.
            pins: full layer name -> format that the layer must have.

        Raises:
            ConfigError: no mix satisfies the budget; the error shows the nearest possible budget.
        """
        kind, names = budget.kind, (x.name for x in self.profile.layers)
        groups = dict(zip(names, self._groups(kind), strict=True))
        pinned = {groups.get(name, name): fmt for name, fmt in (pins or {}).items()}
        choices = self.choices(kind).pinned(pinned)
        if kind == "loss":
            return self._mix(kind, cheapest(choices, log(1 + budget.value)))
        self._require_within(budget, choices)
        limits = {  # of the sum of costs
            "size": budget.value - self.fixed,
            "bits": budget.value * self._block_weights / 8,
            "sparsity": -budget.value * self._block_weights,
            "ms": budget.value,
        }
        tolerance = 1e-9 * (1 if kind == "ms" else self._block_weights)
        return self._mix(kind, best_quality(choices, limits[kind] + tolerance))

    def _require_within(self, budget: Budget, choices: Choices) -> None:
        """Refuse a budget outside the range of the front."""
        is_sparsity = budget.kind == "sparsity"
        tightest, loosest = (
            self._front_mix(budget.kind, choices, number).budget(budget.kind)
            for number in (0, len(choices.front.cost) - 1)
        )
        # A sparsity is tighter if it is higher; all other budgets are tighter if they are lower.
        low, high = (tightest, budget) if is_sparsity else (budget, tightest)
        if low.value < high.value * (1 - 1e-9):  # the tolerance covers budgets parsed from text
            advice = "less" if is_sparsity else "more, or profile cheaper formats"
            raise ConfigError(
                f"No mix of formats satisfies a budget of {budget}.",
                f"The cheapest mix of the profile's formats takes {tightest}.",
                f"Choose {tightest} or {advice}.",
                "allocation",
            )
        if not is_sparsity and budget.value > loosest.value * (1 + 1e-9):
            raise ConfigError(
                f"A budget of {budget} is more than the model takes.",
                f"The best mix takes {loosest}; a larger budget gains nothing.",
                f"Choose {loosest} or less.",
                "allocation",
            )

    def _front_mix(self, kind: BudgetKind, choices: Choices, number: int) -> Mix:
        formats = (choices.formats[fmt] for fmt in choices.front.choice(number))
        return self._mix(kind, dict(zip(choices.items, formats, strict=True)))

    def _mix(self, kind: BudgetKind, formats: Mapping[str, str]) -> Mix:
        """Mix with a format for each group of layers."""
        pairs = zip(self.profile.layers, self._groups(kind), strict=True)
        return self.mix({x.name: self._formats_by_name[formats[group]] for x, group in pairs})

    def mix(self, formats: Mapping[str, Format]) -> Mix:
        """Evaluate a mix, full layer name -> format."""
        columns = [self._columns[formats[x.name]] for x in self.profile.layers]
        selection = np.arange(len(columns)), columns
        nbytes, zeros = self._bytes[selection], -self._costs("sparsity")[selection].sum()
        return Mix(
            formats,
            float(nbytes.sum() + self.fixed),
            float(self._loss[selection].sum()),
            float(zeros / self._block_weights),
            float(8 * nbytes[self._in_blocks].sum() / self._block_weights),
            self._milliseconds(columns) if self.profile.times else None,
        )

    def _milliseconds(self, columns: Sequence[int]) -> float | None:
        """Milliseconds per token; layers that the decoder reads as one matrix are read in the
        slowest of their formats."""
        _, matrix = np.unique(self._groups("ms"), return_inverse=True)
        slowest = np.full(len(matrix), -np.inf)
        np.maximum.at(slowest, matrix, self._rates[np.arange(len(columns)), columns])
        milliseconds = float(self._shares @ slowest[matrix])
        return milliseconds if np.isfinite(milliseconds) else None

    def uniform(self, fmt: Format) -> Mix:
        """Mix with all layers in one format; layers that it does not fit stay dense."""
        fits = np.isfinite(self._loss[:, self.formats.index(fmt)])
        pairs = zip(self.profile.layers, fits, strict=True)
        return self.mix({x.name: fmt if fit else Format() for x, fit in pairs})

    def front(self, points: int = 200, kind: BudgetKind = "size") -> list[Mix]:
        """Best mixes for budgets of a kind, tightest first, at most about `points` mixes.

        Raises:
            ConfigError: the profile has no costs of this kind.
        """
        choices = self.choices(kind)
        steps = np.unique(np.linspace(0, len(choices.front.cost) - 1, points).round().astype(int))
        return [self._front_mix(kind, choices, step) for step in steps.tolist()]


def _group_of(layer: LinearShape, kind: BudgetKind) -> str:
    """Name of the group of layers that share a format under a budget of this kind."""
    if layer.block < 0:
        return EMBEDDING
    # one kernel runs all experts of a block, so they share a format
    expert = EXPERT_NUMBER.sub(r"\1.*.", layer.name)
    return QKV.sub(".qkv", expert) if kind == "ms" else expert
