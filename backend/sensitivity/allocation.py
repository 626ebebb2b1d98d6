"""Allocation: a format for every layer, so that the predicted loss is least under a budget.

    minimize   sum_l loss[l, f_l]     subject to   sum_l cost[l, f_l] <= budget

For a price p of cost, every layer takes the format with the least loss + p cost (Everett 1963).
Over all p those choices are the vertices of the layers' lower convex hulls; sorted by the loss that
a unit of cost saves, the edges of all hulls give the whole front at once:

    each layer at its cheapest vertex -> edges in order of -d loss / d cost -> running sums

What is left of the budget at a vertex of the front is filled greedily, also with formats above a
hull. The result is optimal at each vertex, and elsewhere worse than the optimum by less than the
loss of one edge. Sums of losses are a prediction: that layers add up is an assumption.

Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backend.errors import ConfigError

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """What each item costs and loses in each format. An item is a layer, or several that must share
    a format, whose figures are added. `cost`, `loss`: [items, formats]; infinite where an item
    cannot take a format."""

    items: tuple[str, ...]
    formats: tuple[str, ...]
    cost: Table
    loss: Table

    def restricted(self, allowed: NDArray[np.bool_]) -> "Choices":
        """With the formats [items, formats] alone that are allowed. Raises ConfigError: an item is
        left without any."""
        cost = np.where(allowed, self.cost, np.inf)
        if len(barren := np.flatnonzero(~np.isfinite(cost).any(1))):
            raise ConfigError(
                f"No format is left for {self.items[barren[0]]}.",
                "Those allowed do not fit it.",
                "Allow more formats.",
            )
        return Choices(self.items, self.formats, cost, np.where(allowed, self.loss, np.inf))

    def pinned(self, formats: Mapping[str, str]) -> "Choices":
        """With items held at a format. Raises ConfigError: there is no such item or format, or the
        item cannot take it."""
        allowed = np.isfinite(self.cost)
        for item, form in formats.items():
            if item not in self.items or form not in self.formats:
                unknown = item if item not in self.items else form
                raise ConfigError(
                    f"{unknown[:80]!r} is not in the profile.", "", "Correct the pin."
                )
            row, column = self.items.index(item), self.formats.index(form)
            allowed[row] &= np.arange(len(self.formats)) == column
        return self.restricted(allowed)

    @cached_property
    def front(self) -> "Front":
        """All mixes that are best for some price of cost."""
        edges: list[tuple[float, int, int, float, float]] = []
        start = np.zeros(len(self.items), np.intp)
        cost = loss = 0.0
        for item, (costs, losses) in enumerate(zip(self.cost, self.loss, strict=True)):
            hull = _hull(costs, losses)
            start[item] = hull[0]
            cost, loss = cost + costs[hull[0]], loss + losses[hull[0]]
            for a, b in pairwise(hull):
                dearer, better = costs[b] - costs[a], losses[a] - losses[b]
                edges.append((-better / dearer, item, b, dearer, better))
        edges.sort()
        steps = np.array([edge[3:] for edge in edges]).reshape(-1, 2)
        costs = cost + np.concatenate([[0.0], steps[:, 0].cumsum()])
        losses = loss - np.concatenate([[0.0], steps[:, 1].cumsum()])
        items, formats = (np.array([edge[k] for edge in edges], np.intp) for k in (1, 2))
        return Front(costs, losses, items, formats, start)


@dataclass(frozen=True)
class Front:
    """All mixes that are best for some price of cost, cheapest first.

    Attributes:
        cost, loss: of each mix [edges + 1].
        items, formats: of the edge that leads to each mix but the first [edges].
        start: format of each item in the first one [items].
    """

    cost: Table
    loss: Table
    items: NDArray[np.intp]
    formats: NDArray[np.intp]
    start: NDArray[np.intp]

    def choice(self, mix: int) -> NDArray[np.intp]:
        """Format of each item in mix number `mix`."""
        chosen = self.start.copy()
        chosen[self.items[:mix]] = self.formats[:mix]  # the last edge of an item wins
        return chosen


def best_quality(choices: Choices, budget: float) -> dict[str, str]:
    """Item -> format, of the least loss at a cost of at most `budget`. Raises ConfigError: not even
    the cheapest mix is as cheap."""
    front = choices.front
    if budget < front.cost[0]:
        raise ConfigError(
            "The budget is too small.",
            f"The cheapest mix of formats takes {front.cost[0]:,.0f}, the budget is {budget:,.0f}.",
            "Raise it, or allow cheaper formats.",
            "allocation",
        )
    mix = int(np.searchsorted(front.cost, budget, side="right")) - 1
    return _exchanged(choices, choices.cost, choices.loss, front.choice(mix), budget)


def cheapest(choices: Choices, loss: float) -> dict[str, str]:
    """Item -> format, of the least cost at a predicted loss of at most `loss`. Raises ConfigError:
    not even the best mix loses as little."""
    front = choices.front
    if loss < front.loss[-1]:
        best = f"The best mix of formats is predicted to lose {front.loss[-1]:.4f} nats a token"
        raise ConfigError(
            "The quality cannot be kept.",
            f"{best}, more than {loss:.4f}.",
            "Allow a larger loss, or better formats.",
            "allocation",
        )
    mix = int(np.argmax(front.loss <= loss))
    return _exchanged(choices, choices.loss, choices.cost, front.choice(mix), loss)


def _hull(costs: Table, losses: Table) -> list[int]:
    """Formats on the lower convex hull, cheapest first, each better than those before."""
    hull: list[int] = []
    possible = np.flatnonzero(np.isfinite(costs)).tolist()
    for at in sorted(possible, key=lambda f: (costs[f], losses[f])):
        if hull and (losses[at] >= losses[hull[-1]] or costs[at] == costs[hull[-1]]):
            continue
        while len(hull) > 1 and _above(costs, losses, hull[-2], hull[-1], at):
            hull.pop()
        hull.append(at)
    return hull


def _above(costs: Table, losses: Table, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool(
        (losses[a] - losses[b]) * (costs[c] - costs[a])
        <= (losses[a] - losses[c]) * (costs[b] - costs[a])
    )


def _exchanged(
    choices: Choices, spent: Table, saved: Table, chosen: NDArray[np.intp], limit: float
) -> dict[str, str]:
    """Spend what is left of `limit` on exchanges of formats, the one that saves most for each unit
    it spends first: cost to save loss, or loss to save cost."""
    rows = np.arange(len(chosen))
    while True:
        left = limit - spent[rows, chosen].sum()
        more = spent - spent[rows, chosen][:, None]
        with np.errstate(invalid="ignore"):
            gain = saved[rows, chosen][:, None] - saved
            rate = np.where(
                more > 0, gain / np.where(more > 0, more, 1), np.where(gain > 0, np.inf, 0)
            )
        rate[~((gain > 0) & (more <= left))] = 0
        row, column = np.unravel_index(int(rate.argmax()), rate.shape)
        if rate[row, column] <= 0:
            break
        chosen[row] = column
    return {item: choices.formats[at] for item, at in zip(choices.items, chosen, strict=True)}


def grouped(ties: Sequence[str], table: Table) -> tuple[tuple[str, ...], Table]:
    """Rows of `table` [layers, formats] added up by the group `ties` says each belongs to."""
    groups = tuple(dict.fromkeys(ties))
    index = np.array([groups.index(tie) for tie in ties])
    added = np.zeros((len(groups), table.shape[1]))
    np.add.at(added, index, table)
    return groups, added
