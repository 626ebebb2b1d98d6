"""Parallel work on CPU cores, one single-threaded part per core.

Multi-threaded products of a few hundred rows gain little, because the threads wait for each other
after every operation, and lose much when another program uses one of the cores."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch

from backend.models.memory import memory_available

# float32 copies of the largest weight that statistics and a solver hold at the same time
PEAK_COPIES = 12
T = TypeVar("T")
R = TypeVar("R")


def _new_pool(count: int) -> ThreadPoolExecutor:
    # a thread that has set its number of threads is not affected by the settings of other threads
    return ThreadPoolExecutor(count, "worker", torch.set_num_threads, (1,))


_worker = threading.local()
_pool = cache(_new_pool)  # number of threads -> pool of this process


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has no threads


def parallel_map(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Map `work` over `parts` on as many cores as this thread has. Records no gradients."""
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]

    @torch.no_grad()
    def work_on(index: int, part: T) -> R:
        _worker.part = index
        return work(part)

    pool = _pool(threads)
    futures = [pool.submit(work_on, index, part) for index, part in enumerate(parts)]
    wait(futures)  # all of them: after an error the caller may free the tensors they use
    return [future.result() for future in futures]


def part_index() -> int:
    """Index of the part that this thread is working on in `parallel_map`; 0 outside of it."""
    index: int = getattr(_worker, "part", 0)
    return index


class InlineExecutor(Executor):
    """Executor that runs each call immediately, in the calling thread."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future = Future[T]()
        future.set_result(call(*args, **kwargs))
        return future


def statistics_executor(
    device: torch.device, largest: int, log: Callable[[str], None], workers: int = 1
) -> Executor:
    """An executor for the statistics of a run: threads next to the run's own work on a CPU with
    several cores and enough memory, inline execution otherwise.

    Args:
        device: device of the model.
        largest: number of entries of the largest weight.
        log: receives a message if memory is short.
        workers: number of threads.
    """
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return InlineExecutor()
    if memory_available() < workers * PEAK_COPIES * 4 * largest:
        log("Statistics run between the other steps: memory is too short to run them in parallel.")
        return InlineExecutor()
    return _new_pool(workers)
