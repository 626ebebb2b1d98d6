"""Speed of this machine: multiply-adds per second, and bytes per second of memory and disk.
Measured once, in about a second, by a process that has loaded torch."""

import os
import tempfile
import time
from contextlib import suppress

import torch
from filelock import FileLock, Timeout

from backend.kernels.speeds import TOKENS, WIDTH, pytorch_product, shortest_s
from backend.settings import available_threads, settings
from jobs.estimates import BUSY, REFERENCE_RATES, Rates, rates_file, rates_here

COPIED_BYTES, WRITTEN_BYTES = 2**26, 2**25
MEASUREMENT_S = 0.3


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
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    copy = torch.empty_like(source)
    float32, bfloat16 = pytorch_product("float32"), pytorch_product("bfloat16")
    seconds = shortest_s(
        {"float32": float32, "bfloat16": bfloat16, "memory": lambda: copy.copy_(source)},
        MEASUREMENT_S,
    ) | shortest_s({"disk": _write}, MEASUREMENT_S, time.perf_counter)
    products = TOKENS * WIDTH * WIDTH
    amounts = {"memory": COPIED_BYTES, "disk": WRITTEN_BYTES}
    rates = {name: amounts.get(name, products) / time_s for name, time_s in seconds.items()}
    return Rates(**rates, load=load)


def _write() -> None:
    with tempfile.TemporaryFile(dir=settings().root) as file:
        file.write(bytes(WRITTEN_BYTES))
        os.fsync(file.fileno())
