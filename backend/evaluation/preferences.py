"""Ratings from comparisons of pairs: the Bradley-Terry model (Bradley and Terry, 1952).

    P(i beats j) = 1 / (1 + exp(s_j - s_i))

A tie counts as half a win of each. The strengths s maximise the likelihood times a weak normal
prior (ours, standard deviation `PRIOR`), which keeps those finite that have always won or lost; the
95 % intervals come from the curvature there (Laplace). On the scale people know from chess, 400
points are odds of 10 to 1 and the mean is 1000."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRIOR = 2.0  # of a strength: 95 % within odds of 50 to 1
STEPS, TOLERANCE = 100, 1e-9
POINTS, MEAN = 400 / math.log(10), 1000.0
NORMAL_95 = 1.96

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """`share`: 1 where the first of the pair won, 0 where the second did, 0.5 for a tie."""

    first: str
    second: str
    share: float


@dataclass(frozen=True)
class Rating:
    """One of those that were compared."""

    name: str
    score: float  # points
    low: float  # of its 95 % interval
    high: float
    wins: float  # comparisons it won, ties counting half
    n: int  # comparisons it was in


def ratings(comparisons: Sequence[Comparison]) -> list[Rating]:
    """The ratings, the best first. A comparison with itself tells nothing."""
    those = [each for each in comparisons if each.first != each.second]
    names = sorted({name for each in those for name in (each.first, each.second)})
    place = {name: n for n, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))  # [i, j]: how often i beat j
    for each in those:
        i, j = place[each.first], place[each.second]
        wins[i, j] += each.share
        wins[j, i] += 1 - each.share
    strengths, deviations = fit(wins)
    played = (wins + wins.T).sum(1)
    scores, margins = MEAN + POINTS * strengths, POINTS * NORMAL_95 * deviations
    found = [
        Rating(name, score, score - margin, score + margin, float(won), round(games))
        for name, score, margin, won, games in zip(
            names, scores.tolist(), margins.tolist(), wins.sum(1), played, strict=True
        )
    ]
    return sorted(found, key=lambda rating: -rating.score)


def win_probability(first: Rating, second: Rating) -> float:
    """That the first is preferred to the second: 1 / (1 + exp((s2 - s1) / POINTS))."""
    return 1 / (1 + math.exp((second.score - first.score) / POINTS))


def votes_needed(wins: float) -> int:
    """After which the normal 95 % interval of a share of `wins`, above 1/2, leaves 1/2 out. At most
    0.5 / sqrt(n) is the standard error of the share."""
    return math.ceil((NORMAL_95 / (2 * (wins - 0.5))) ** 2)


def fit(wins: Vector) -> tuple[Vector, Vector]:
    """Strengths [n], whose mean is 0, and their standard deviations [n], by Newton's method.
    `wins`: [n, n], how often i beat j; the diagonal is zero."""
    count = len(wins)
    strengths, games = np.zeros(count), wins + wins.T
    information = np.eye(count) / PRIOR**2
    for _ in range(STEPS):
        odds = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))  # [i, j]: P(i beats j)
        slope = (wins - games * odds).sum(1) - strengths / PRIOR**2
        weight = games * odds * (1 - odds)
        information = np.diag(weight.sum(1)) - weight + np.eye(count) / PRIOR**2
        step = np.linalg.solve(information, slope)
        strengths = strengths + step
        if not count or np.abs(step).max() < TOLERANCE:
            break
    return strengths, np.sqrt(np.diag(np.linalg.inv(information)))
