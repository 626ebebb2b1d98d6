"""The rates of this machine: products of a number with a weight and bytes a second. Measured once,
in a second, by a process that has loaded torch."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from filelock import FileLock, Timeout

from backend.settings import available_threads, settings
from jobs.estimates import BUSY, REFERENCE_RATES, Rates, rates_file, rates_here

ROWS, WIDTH = 512, 1024  # tokens and width of a typical layer
COPIED, WRITTEN = 2**26, 2**25  # bytes
SECONDS = 0.2  # of each measurement


def measure_once() -> None:
    """Measure the rates unless they are known, or another process does now; again once the machine
    is less busy than it was."""
    load = os.getloadavg()[0] / available_threads()
    path = rates_file()
    with suppress(Timeout, OSError):  # no run fails by it
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=0):
            known = rates_here()
            if known is REFERENCE_RATES or known.load > max(BUSY, 2 * load):
                part = path.with_suffix(".part")
                part.write_text(measure(load).model_dump_json())
                part.replace(path)


def measure(load: float) -> Rates:
    """The best of several measurements each: other processes only make it slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for the slowest on a busy machine
    source = torch.zeros(COPIED, dtype=torch.uint8)
    copy = torch.empty_like(source)
    try:
        return Rates(
            float32=_products(torch.float32),
            bfloat16=_products(torch.bfloat16),
            memory=_rate(COPIED, lambda: copy.copy_(source)),
            disk=_rate(WRITTEN, _write),
            load=load,
        )
    finally:
        torch.set_num_threads(threads)


def _products(dtype: torch.dtype) -> float:
    tokens, weights = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return _rate(ROWS * WIDTH * WIDTH, lambda: tokens @ weights)


def _write() -> None:
    with tempfile.TemporaryFile(dir=settings().root) as file:
        file.write(bytes(WRITTEN))
        os.fsync(file.fileno())


def _rate(amount: float, work: Callable[[], object]) -> float:
    """Amount a second, of the fastest time."""
    times, end = list[float](), time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return amount / min(times)
