"""Choice between two implementations of the same work by their speed, measured once per machine.

The speed is measured rather than derived from the processor's name, because the instructions that
PyTorch uses depend on how it was built. Callers choose the implementation of Gram matrices
(`linalg.gram`), descents (`pruning.redense`) and forward passes over texts
(`evaluation.native_text`), and the precision of calibration and training (`models.blocks`)."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, Field

from backend.kernels.library import kernels_or_none, machine_file

TOKENS, WIDTH = 256, 1024  # length of a text, and width of a typical layer
MEASUREMENT_S = 0.04  # total for both implementations
KERNELS, PYTORCH = "kernels", "PyTorch"

log = logging.getLogger("slimscope.kernels")
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Run = Callable[[], object]


class SpeedComparison(BaseModel):
    """Shortest measured processor time of each implementation of some work, on one thread.

    Attributes:
        work: name of the work.
        seconds: name of the implementation -> time.
    """

    work: str
    seconds: dict[str, Duration]

    @property
    def fastest(self) -> str:
        """Name of the fastest implementation; the first of equally fast ones."""
        return min(self.seconds, key=self.seconds.__getitem__)

    def __str__(self) -> str:
        best = self.fastest
        others = (
            f"{name}: {time_s / self.seconds[best]:.2f} × the time"
            for name, time_s in self.seconds.items()
            if name != best
        )
        return f"{self.work}: {best} ({', '.join(others)})"


def choose(work: str, implementations: Mapping[str, Run]) -> SpeedComparison:
    """Read the choice of this machine from a file, or measure and store it. Of processes that
    measure at the same time, all use the times that were stored first.

    Args:
        work: name of the work.
        implementations: name -> function that does a small part of the work.
    """
    kernels = kernels_or_none()
    version = f"{kernels.library._name} {kernels.name}" if kernels else ""
    path = machine_file(f"{work} {version}")
    choice = _stored(path, implementations)
    if choice is None:
        choice = SpeedComparison(work=work, seconds=shortest_s(implementations, MEASUREMENT_S))
        with suppress(OSError), FileLock(path.with_suffix(".lock"), mode=0o600):
            # without a file, the next process measures again
            if (first := _stored(path, implementations)) is not None:
                choice = first
            else:
                part = path.with_suffix(".part")
                part.write_text(choice.model_dump_json())
                part.replace(path)
    log.info("Fastest on this machine: %s.", choice)
    return choice


def _stored(path: Path, implementations: Iterable[str]) -> SpeedComparison | None:
    """Read the choice from its file; None if there is none between `implementations`."""
    with suppress(OSError, ValueError):
        choice = SpeedComparison.model_validate_json(path.read_bytes())
        return choice if [*choice.seconds] == [*implementations] else None
    return None


def shortest_s(
    runs: Mapping[str, Run], duration_s: float, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Measure the shortest time of each function on one thread, in seconds.

    The functions take turns, are called at least twice, and for about `duration_s` in all.

    Args:
        runs: name -> function.
        duration_s: duration of the measurement.
        clock: the default, processor time, does not count waits on a busy machine."""
    import torch  # imported late: it takes seconds, and most commands do not need it

    threads, shortest = torch.get_num_threads(), dict.fromkeys(runs, math.inf)
    torch.set_num_threads(1)  # the time of other threads would not be counted
    try:
        for run in runs.values():
            run()
        end = time.perf_counter() + duration_s
        while True:
            for name, run in runs.items():
                start = clock()
                run()
                shortest[name] = min(shortest[name], clock() - start)
            if time.perf_counter() >= end:
                return shortest
    finally:
        torch.set_num_threads(threads)


def pytorch_product(precision: str) -> Run:
    """Return a function that multiplies [TOKENS, WIDTH] by [WIDTH, WIDTH] in PyTorch."""
    import torch

    dtype = getattr(torch, precision)
    tokens, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return lambda: tokens @ weight
