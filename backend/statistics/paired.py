"""Paired comparison of two models on the same windows of text. Does not import torch.

    d_i   = nll_i(model) - nll_i(reference)      mean loss of window i, nats per token
    ratio = exp(mean_i d_i)                      of the two perplexities

The 95 % interval of the ratio is a percentile bootstrap (Efron 1979): the 2.5 % and 97.5 %
quantiles of exp(mean d) over 10,000 resamples of the windows with replacement.

Texts differ far more from each other than models do on the same text, so the paired interval is
narrower than the standard errors suggest. Models whose interval contains 1 are not significantly
different."""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from backend.statistics.ratio import PairedRatio

WINDOW_LOSSES = "window_losses"  # profile of a stage that holds nll_i
RESAMPLES, MIN_WINDOWS = 10_000, 5
LOW_QUANTILE, HIGH_QUANTILE = 0.025, 0.975


def paired_ratio(losses: ArrayLike, reference: ArrayLike) -> PairedRatio | None:
    """Ratio of the perplexity of a model to that of a reference.

    Args:
        losses: mean losses [n] of the model, in nats per token.
        reference: mean losses [n] of the reference on the same windows.

    Returns:
        the ratio, or None if the numbers of windows differ or are below `MIN_WINDOWS`.
    """
    ours, theirs = np.asarray(losses, np.float64), np.asarray(reference, np.float64)
    if len(ours) != len(theirs) or len(ours) < MIN_WINDOWS:
        return None
    return _bootstrap(tuple((ours - theirs).tolist()))


@lru_cache(512)  # pages of active runs compute the same ratios again and again
def _bootstrap(differences: tuple[float, ...]) -> PairedRatio:
    d, count = np.array(differences), len(differences)
    resamples = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    low, high = np.quantile(d[resamples].mean(1), (LOW_QUANTILE, HIGH_QUANTILE))
    value, lowest, highest = (float(np.exp(x)) for x in (d.mean(), low, high))
    return PairedRatio(value, lowest, highest, count)
