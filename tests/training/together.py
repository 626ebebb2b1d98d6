"""Functions that several processes run together, forked from a warm one."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from backend.training import distributed
from tests.fork_server import FORKS

LIMIT_S = 60.0  # for a training of a few steps
T = TypeVar("T")


def together(count: int, rendezvous: Path, function: Callable[..., T], *given: object) -> list[T]:
    """What a function of a module returns in each of `count` processes that train together; alone
    it is called here.

    Args:
        rendezvous: a file that does not exist.
    """
    if count == 1:
        return [function(*given)]
    with ProcessPoolExecutor(count, FORKS) as pool:
        futures = [
            pool.submit(_joined, number, count, rendezvous, function, given)
            for number in range(count)
        ]
        try:
            return [future.result(LIMIT_S) for future in futures]
        except BaseException:
            for process in [*pool._processes.values()]:  # they may wait for each other
                process.kill()
            raise


def _joined(
    number: int, count: int, rendezvous: Path, function: Callable[..., T], given: tuple[object, ...]
) -> T:
    torch.set_num_threads(1)
    distributed.join(number, count, rendezvous)
    try:
        return function(*given)
    finally:
        distributed.leave()
