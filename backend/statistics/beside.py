"""Statistics beside the work they are of, in a thread that takes one of the cores of a run."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from backend.models.memory import memory_available

COPIES = 12  # of the largest weight, float32: what statistics take while a solver takes as much
T = TypeVar("T")


class AtOnce(Executor):
    """Carries out a call where it is made."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done = Future[T]()
        done.set_result(call(*args, **kwargs))
        return done


def beside(device: torch.device, largest: int, tell: Callable[[str], None]) -> Executor:
    """What carries out statistics one after the other: beside the work on a CPU, where the run has
    several threads and there is memory for both. `largest`: entries of the largest weight."""
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return AtOnce()
    if memory_available() < COPIES * 4 * largest:
        tell("Statistics are computed in between: there is no memory to do it beside the work.")
        return AtOnce()
    # as this thread has asked for its number of threads, that of another does not change it
    return ThreadPoolExecutor(1, "statistics", torch.set_num_threads, (1,))
