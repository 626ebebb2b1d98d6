"""Work on the cores of a CPU side by side, each part on one.

Products of a few hundred rows, and what lies between them, gain little from several threads that
wait for each other after each; and much is lost where something else takes one of the cores."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch

from backend.models.memory import memory_available

COPIES = 12  # of the largest weight, float32: what statistics take while a solver takes as much
T = TypeVar("T")
R = TypeVar("R")


def _threads(count: int) -> ThreadPoolExecutor:
    # as a thread has asked for its number of threads, that of another does not change it
    return ThreadPoolExecutor(count, "worker", torch.set_num_threads, (1,))


_place = threading.local()
_workers = cache(_threads)  # count -> those of this process


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads are not inherited


def side_by_side(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """`work` of all `parts`, on as many cores as this thread has; gradients are not recorded."""
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]

    def one(part: tuple[int, T]) -> R:
        _place.number = part[0]
        return work(part[1])

    pool, call = _workers(threads), torch.no_grad()(one)
    calls = [pool.submit(call, part) for part in enumerate(parts)]
    wait(calls)  # for all: what they work on may be taken away after an error
    return [call.result() for call in calls]


def place() -> int:
    """The number of the part that this thread works on `side_by_side` with others; else 0."""
    number: int = getattr(_place, "number", 0)
    return number


class AtOnce(Executor):
    """Carries out a call where it is made."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done = Future[T]()
        done.set_result(call(*args, **kwargs))
        return done


def beside(
    device: torch.device, largest: int, tell: Callable[[str], None], workers: int = 1
) -> Executor:
    """What carries out statistics, on `workers` threads: beside the work on a CPU, where the run
    has several threads and there is memory for all. `largest`: entries of the largest weight."""
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return AtOnce()
    if memory_available() < workers * COPIES * 4 * largest:
        tell("Statistics are computed in between: there is no memory to do it beside the work.")
        return AtOnce()
    return _threads(workers)
