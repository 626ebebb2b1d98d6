"""Where a run's time goes, step by step, and where its memory does not last."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.errors import ComputeError
from backend.methods.sds.config import STEP_LABELS, SDSStage
from backend.models.memory import is_out_of_memory

LOWER = {  # step -> what to lower when the memory does not last, and the field that does it
    "inputs": ("Lower the segments per forward pass or the context length.", "batch"),
    "heldout": ("Lower the context length.", "context"),
    SDSStage.REDENSE: ("Choose the gram solver, or let the weights be streamed.", "redense"),
}
ELSE = ("Let the weights be streamed; if they are, leave the largest layers dense.", "weights")


class StepTimer:
    """Seconds spent, by step. A step for which the memory does not last is named.

    Args:
        where: completes the sentence "The memory does not last for the pruning".
    """

    def __init__(self, where: str = "") -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._where = where

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._short(step, error) from error
            raise
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else the next step would pay for this one
        self.seconds[step] += time.perf_counter() - start

    def _short(self, step: str, error: Exception) -> ComputeError:
        do, field = LOWER.get(step, ELSE)
        return ComputeError(
            f"The memory does not last for the {STEP_LABELS.get(step, step)}{self._where}.",
            str(error).split("\n")[0][:300],
            do,
            field=field,
        )
