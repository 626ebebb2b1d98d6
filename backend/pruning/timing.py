"""Time spent in each step of a run, and out-of-memory errors that name the step."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from backend.errors import ComputeError
from backend.models.memory import is_out_of_memory
from backend.pruning.config import STEP_LABELS

OUT_OF_MEMORY = {  # step -> what to do when it runs out of memory, and the config field
    "inputs": ("Lower the calibration batch size or the context length.", "batch"),
    "blocks": ("Lower the context length, or leave out the block reconstruction.", "reconstruct"),
    "heldout": ("Lower the context length.", "context"),
}
OTHER_STEPS = ("Stream the weights; if they are, exclude the largest layers.", "weights")


class StepTimer:
    """Measures the seconds of each step; turns an out-of-memory error into one that names it.

    Args:
        where: completes "Out of memory: pruning", such as " of block 3 of 30".
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
                do, field = OUT_OF_MEMORY.get(step, OTHER_STEPS)
                what = f"Out of memory: {STEP_LABELS.get(step, step)}{self._where}."
                why = str(error).split("\n")[0][:300]
                raise ComputeError(what, why, do, field=field) from error
            raise
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # otherwise the next step is charged for it
        self.seconds[step] += time.perf_counter() - start
