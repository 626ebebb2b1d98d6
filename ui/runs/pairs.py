"""Models compared on the same windows of text: the losses that runs have stored, and their paired
ratios."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from backend.statistics.paired import WINDOW_LOSSES, PairedRatio, paired_ratio
from backend.store import tensors
from backend.store.tables import Job
from jobs.comparison import StageComparison
from jobs.metrics import BITS_PER_BYTE, PERPLEXITY

WINDOW_METRICS = (PERPLEXITY, BITS_PER_BYTE)  # figures of the losses that are compared in pairs


def window_losses(job: Job) -> dict[str, np.ndarray]:
    """Loss of each window [windows], by stage."""
    return {p.stage: p.values for p in tensors.profiles(job.id, "", WINDOW_LOSSES)}


def stage_comparison(job: Job, perplexity: Mapping[str, float]) -> StageComparison:
    return StageComparison(perplexity, partial(_ratio, window_losses(job)))


def _ratio(losses: Mapping[str, np.ndarray], stage: str, rival: str) -> PairedRatio | None:
    if stage not in losses or rival not in losses:
        return None
    return paired_ratio(losses[stage], losses[rival])
