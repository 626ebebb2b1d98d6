"""Speed of this machine: multiply-adds per second, and bytes per second of memory and disk.
Measured once, in about a second, by a process that has loaded torch."""

import os
import tempfile
from contextlib import suppress

import torch
from filelock import FileLock, Timeout

from backend.kernels.speeds import best_rate
from backend.settings import available_threads, settings
from jobs.estimates import BUSY, REFERENCE_RATES, Rates, rates_file, rates_here

TOKENS, WIDTH = 512, 1024  # of a typical layer
COPIED_BYTES, WRITTEN_BYTES = 2**26, 2**25
MEASUREMENT_S = 0.2


def measure_once() -> None:
    """Measure unless rates are stored or another process is measuring. Measures again when the
    machine is less busy than at the stored measurement."""
    load = os.getloadavg()[0] / available_threads()
    path = rates_file()
    with suppress(Timeout, OSError):  # a failed measurement must not fail a run
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=0):
            rates = rates_here()
            if rates is REFERENCE_RATES or rates.load > max(BUSY, 2 * load):
                part = path.with_suffix(".part")
                part.write_text(measure(load).model_dump_json())
                part.replace(path)


def measure(load: float) -> Rates:
    """Return the best of several measurements of each rate, since other processes only slow it
    down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine several threads wait for the slowest
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    copy = torch.empty_like(source)
    try:
        return Rates(
            float32=_products(torch.float32),
            bfloat16=_products(torch.bfloat16),
            memory=best_rate(COPIED_BYTES, lambda: copy.copy_(source), MEASUREMENT_S),
            disk=best_rate(WRITTEN_BYTES, _write, MEASUREMENT_S),
            load=load,
        )
    finally:
        torch.set_num_threads(threads)


def _products(dtype: torch.dtype) -> float:
    tokens, weights = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return best_rate(TOKENS * WIDTH * WIDTH, lambda: tokens @ weights, MEASUREMENT_S)


def _write() -> None:
    with tempfile.TemporaryFile(dir=settings().root) as file:
        file.write(bytes(WRITTEN_BYTES))
        os.fsync(file.fileno())
