"""Paired comparison of two models on the same windows of text. Does not import torch.

    d_i   = nll_i(one) - nll_i(other)            mean loss of window i, nats per token
    ratio = exp(mean_i d_i)                      of the two perplexities
    95 % interval of the ratio: windows are drawn again with replacement, 10,000 times, and the
    2.5 % and 97.5 % quantiles of exp(mean d) taken (percentile bootstrap, Efron 1979)

Texts differ far more from each other than models do on the same text, so this tells models apart
that their standard errors do not. Models whose interval holds 1 are not significantly different."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from backend.statistics.ratio import PairedRatio

WINDOW_LOSSES = "window_losses"  # the profile of a run's stage that holds nll_i
DRAWS, MIN_WINDOWS = 10_000, 5
LOW_QUANTILE, HIGH_QUANTILE = 0.025, 0.975


def paired_ratio(one: ArrayLike, other: ArrayLike) -> PairedRatio | None:
    """Perplexity of one model over that of the other. `one`, `other`: mean losses [n] of the same
    windows, in nats per token. Returns None where the windows are not the same number, or too
    few."""
    ours, theirs = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if len(ours) != len(theirs) or len(ours) < MIN_WINDOWS:
        return None
    return _ratio(tuple((ours - theirs).tolist()))


@lru_cache(512)
def _ratio(losses: tuple[float, ...]) -> PairedRatio:
    """Of the differences d_i; kept, as pages of runs at work ask again and again."""
    differences = np.array(losses)
    drawn = np.random.default_rng(0).integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), (LOW_QUANTILE, HIGH_QUANTILE))
    value, lowest, highest = (float(np.exp(x)) for x in (differences.mean(), low, high))
    return PairedRatio(value, lowest, highest, len(differences))
