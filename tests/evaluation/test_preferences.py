"""Ratings from pairs: those of a plain maximiser, and intervals that cover the truth."""

from __future__ import annotations

import math

import numpy as np

from backend.evaluation.preferences import POINTS, PRIOR, Comparison, fit, ratings

TRUE = {"a": 1.0, "b": 0.2, "c": -1.2}


def played(games: int, seed: int) -> list[Comparison]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(games):
        one, other = random.choice([*TRUE], 2, replace=False)
        chance = 1 / (1 + math.exp(TRUE[other] - TRUE[one]))
        found.append(Comparison(one, other, float(random.random() < chance)))
    return found


def test_the_likelihood_is_greatest_there() -> None:
    wins = np.array([[0, 5, 7.5], [2, 0, 4], [0.5, 3, 0]])

    def likelihood(s: np.ndarray) -> float:
        chances = np.log(1 / (1 + np.exp(s[None] - s[:, None])))
        return float((wins * chances).sum() - (s**2).sum() / (2 * PRIOR**2))

    strengths, _ = fit(wins)
    best = likelihood(strengths)
    for step in np.eye(3) * 1e-3:
        assert likelihood(strengths + step) < best and likelihood(strengths - step) < best


def test_the_intervals_cover_the_truth() -> None:
    mean = sum(TRUE.values()) / 3
    inside = [
        rating.low <= 1000 + POINTS * (TRUE[rating.name] - mean) <= rating.high
        for seed in range(60)
        for rating in ratings(played(150, seed))
    ]
    assert 0.9 <= sum(inside) / len(inside) <= 1.0
    assert [r.name for r in ratings(played(3000, 1))] == ["a", "b", "c"]


def test_one_that_always_wins_has_a_finite_rating_and_more_votes_a_narrower_interval() -> None:
    few, many = (ratings([Comparison("a", "b", 1.0)] * n) for n in (3, 30))
    assert few[0].name == "a" and few[0].wins == 3 and few[0].n == 3
    assert math.isfinite(many[0].score) and many[0].score > few[0].score > few[1].score
    assert few[0].high - few[0].low > many[0].high - many[0].low
