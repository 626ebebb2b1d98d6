"""Allocation of formats to layers that minimizes the predicted loss under a budget.

    minimize   sum_l loss[l, f_l]     subject to   sum_l cost[l, f_l] <= budget

For a price p of cost, every layer takes the format that minimizes loss + p cost (Everett 1963).
Over all p, these formats are the vertices of the layers' lower convex hulls. Sorting the edges of
all hulls by the loss that a unit of cost saves gives the entire front at once:

    each layer at its cheapest vertex -> edges in order of -d loss / d cost -> running sums

The rest of the budget at a vertex of the front is filled greedily, including formats above a hull.
The result is optimal at each vertex; elsewhere it is worse than the optimum by less than the loss
of one edge. The predicted loss assumes that the losses of layers add up.

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
    """Costs and losses of each item in each format.

    An item is a layer, or several layers that must share a format, with the sums of their figures.

    Attributes:
        items: names of the items.
        formats: names of the formats.
        cost: [items, formats]; infinite if an item cannot have a format.
        loss: [items, formats]; infinite if an item cannot have a format.
    """

    items: tuple[str, ...]
    formats: tuple[str, ...]
    cost: Table
    loss: Table

    def restricted(self, allowed: NDArray[np.bool_]) -> "Choices":
        """Restrict the formats of each item.

        Args:
            allowed: [items, formats].

        Raises:
            ConfigError: an item has no format.
        """
        cost = np.where(allowed, self.cost, np.inf)
        if len(without_format := np.flatnonzero(~np.isfinite(cost).any(1))):
            raise ConfigError(
                f"No format is available for {self.items[without_format[0]]}.",
                "None of the allowed formats fits it.",
                "Allow more formats.",
            )
        return Choices(self.items, self.formats, cost, np.where(allowed, self.loss, np.inf))

    def pinned(self, formats: Mapping[str, str]) -> "Choices":
        """Pin items to a format.

        Args:
            formats: item -> format.

        Raises:
            ConfigError: the item or format does not exist, or the item cannot have the format.
        """
        allowed = np.isfinite(self.cost)
        for item, fmt in formats.items():
            if item not in self.items or fmt not in self.formats:
                unknown = item if item not in self.items else fmt
                raise ConfigError(
                    f"{unknown[:80]!r} is not in the profile.", "", "Correct the pinned format."
                )
            row, column = self.items.index(item), self.formats.index(fmt)
            allowed[row] &= np.arange(len(self.formats)) == column
        return self.restricted(allowed)

    @cached_property
    def front(self) -> "Front":
        """All mixes that are optimal for some price of cost."""
        # (slope, item, format at the end of the edge, added cost, saved loss)
        edges: list[tuple[float, int, int, float, float]] = []
        start = np.zeros(len(self.items), np.intp)
        cost = loss = 0.0
        for item, (costs, losses) in enumerate(zip(self.cost, self.loss, strict=True)):
            hull = _hull(costs, losses)
            start[item] = hull[0]
            cost, loss = cost + costs[hull[0]], loss + losses[hull[0]]
            for a, b in pairwise(hull):
                added_cost, saved_loss = costs[b] - costs[a], losses[a] - losses[b]
                edges.append((-saved_loss / added_cost, item, b, added_cost, saved_loss))
        edges.sort()
        steps = np.array([edge[3:] for edge in edges]).reshape(-1, 2)
        costs = cost + np.concatenate([[0.0], steps[:, 0].cumsum()])
        losses = loss - np.concatenate([[0.0], steps[:, 1].cumsum()])
        items, formats = (np.array([edge[k] for edge in edges], np.intp) for k in (1, 2))
        return Front(costs, losses, items, formats, start)


@dataclass(frozen=True)
class Front:
    """All mixes that are optimal for some price of cost, cheapest first.

    Attributes:
        cost: cost of each mix [edges + 1].
        loss: loss of each mix [edges + 1].
        items: item that changes from each mix to the next [edges].
        formats: new format of that item [edges].
        start: format of each item in the first mix [items].
    """

    cost: Table
    loss: Table
    items: NDArray[np.intp]
    formats: NDArray[np.intp]
    start: NDArray[np.intp]

    def choice(self, mix: int) -> NDArray[np.intp]:
        """Format of each item in mix number `mix`."""
        selection = self.start.copy()
        selection[self.items[:mix]] = self.formats[:mix]  # the last edge of an item wins
        return selection


def best_quality(choices: Choices, budget: float) -> dict[str, str]:
    """Minimize the loss at a cost of at most `budget`.

    Returns:
        item -> format.

    Raises:
        ConfigError: even the cheapest mix exceeds the budget.
    """
    front = choices.front
    if budget < front.cost[0]:
        raise ConfigError(
            "The budget is too small.",
            f"The cheapest mix of formats takes {front.cost[0]:,.0f}; the budget is {budget:,.0f}.",
            "Raise the budget, or allow cheaper formats.",
            "allocation",
        )
    mix = int(np.searchsorted(front.cost, budget, side="right")) - 1
    return _exchange_formats(choices, choices.cost, choices.loss, front.choice(mix), budget)


def cheapest(choices: Choices, loss: float) -> dict[str, str]:
    """Minimize the cost at a predicted loss of at most `loss`.

    Returns:
        item -> format.

    Raises:
        ConfigError: even the best mix exceeds the loss.
    """
    front = choices.front
    if loss < front.loss[-1]:
        best = (
            f"The best mix of formats has a predicted loss of {front.loss[-1]:.4f} nats per token"
        )
        raise ConfigError(
            "No mix of formats keeps this quality.",
            f"{best}, more than {loss:.4f}.",
            "Allow a larger loss, or better formats.",
            "allocation",
        )
    mix = int(np.argmax(front.loss <= loss))
    return _exchange_formats(choices, choices.loss, choices.cost, front.choice(mix), loss)


def _hull(costs: Table, losses: Table) -> list[int]:
    """Formats on the lower convex hull, cheapest first; losses decrease strictly."""
    hull: list[int] = []
    available = np.flatnonzero(np.isfinite(costs)).tolist()
    for fmt in sorted(available, key=lambda f: (costs[f], losses[f])):
        if hull and (losses[fmt] >= losses[hull[-1]] or costs[fmt] == costs[hull[-1]]):
            continue
        while len(hull) > 1 and _is_above(costs, losses, hull[-2], hull[-1], fmt):
            hull.pop()
        hull.append(fmt)
    return hull


def _is_above(costs: Table, losses: Table, a: int, b: int, c: int) -> bool:
    """Return True if b lies on or above the line from a to c."""
    return bool(
        (losses[a] - losses[b]) * (costs[c] - costs[a])
        <= (losses[a] - losses[c]) * (costs[b] - costs[a])
    )


def _exchange_formats(
    choices: Choices, spent: Table, saved: Table, selection: NDArray[np.intp], limit: float
) -> dict[str, str]:
    """Spend the rest of `limit` on exchanges of formats with the highest savings per unit spent.

    The exchanges spend cost to save loss, or loss to save cost.

    Args:
        choices: items and formats.
        spent: amount of the limited quantity [items, formats].
        saved: amount of the quantity to reduce [items, formats].
        selection: initial format of each item [items]; modified in place.
        limit: maximum sum of `spent`.

    Returns:
        item -> format.
    """
    rows = np.arange(len(selection))
    while True:
        remaining = limit - spent[rows, selection].sum()
        expense = spent - spent[rows, selection][:, None]
        with np.errstate(invalid="ignore"):
            gain = saved[rows, selection][:, None] - saved
            rate = np.where(
                expense > 0,
                gain / np.where(expense > 0, expense, 1),
                np.where(gain > 0, np.inf, 0),
            )
        rate[~((gain > 0) & (expense <= remaining))] = 0
        row, column = np.unravel_index(int(rate.argmax()), rate.shape)
        if rate[row, column] <= 0:
            break
        selection[row] = column
    return {item: choices.formats[fmt] for item, fmt in zip(choices.items, selection, strict=True)}


def grouped(group_names: Sequence[str], table: Table) -> tuple[tuple[str, ...], Table]:
    """Sum the rows of a table by group.

    Args:
        group_names: name of the group of each row [layers].
        table: [layers, formats].

    Returns:
        names of the groups, and sums [groups, formats].
    """
    groups = tuple(dict.fromkeys(group_names))
    index = np.array([groups.index(name) for name in group_names])
    sums = np.zeros((len(groups), table.shape[1]))
    np.add.at(sums, index, table)
    return groups, sums
