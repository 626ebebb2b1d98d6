"""Speed of matrix products in the kernels and in PyTorch, measured once per machine.

The faster of the two is used for forward passes over a text. The choice is measured rather than
derived from the processor's name, because the instructions that PyTorch uses depend on how it was
built."""

import hashlib
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from backend.compiler import kernel_version
from backend.kernels.library import Matrix, check, kernels, processor_flags
from backend.settings import settings

ROWS, WIDTH = 256, 1024  # tokens, and width of a typical layer
SECONDS = 0.007  # duration of each of the three measurements


Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ReadingSpeeds(BaseModel):
    """Billions of operations per second on one thread.

    Attributes:
        kernels: speed of the kernels.
        float32: speed of PyTorch in float32.
        bfloat16: speed of PyTorch in bfloat16.
    """

    kernels: Speed
    float32: Speed
    bfloat16: Speed

    def compared(self, precision: str) -> tuple[bool, str]:
        """Compare the kernels with PyTorch in a precision.

        Returns:
            True if the kernels are at least as fast, and a description of the ratio.
        """
        name = "bfloat16" if precision == "bfloat16" else "float32"
        ratio = getattr(self, name) / self.kernels
        return ratio <= 1, f"the kernels take {ratio:.2f} of the time of PyTorch in {name}"


@lru_cache
def reading_speeds() -> ReadingSpeeds:
    """Read the speeds of this machine from a file, or measure and store them.

    Raises:
        CompilerError: there are no kernels.
    """
    kernels()  # raises before anything is measured
    path = _file()
    with suppress(OSError, ValueError):
        return ReadingSpeeds.model_validate_json(path.read_bytes())
    speeds = _measured()
    with suppress(OSError):  # without a file, the next process measures again
        part = path.with_suffix(".part")
        part.write_text(speeds.model_dump_json())
        part.replace(path)
    return speeds


def _file() -> Path:
    """Path of the file. Its name depends on machine and versions, since machines may share the
    folder."""
    parts = platform.node(), kernel_version(), version("torch"), *sorted(processor_flags())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return settings().cache_dir / "native" / f"speeds-{key}.json"


def _measured() -> ReadingSpeeds:
    import torch  # imported late: it takes seconds, and most commands do not need it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, several threads would wait for the slowest
    try:
        weight = torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16)
        tokens = torch.ones(ROWS, WIDTH)
        half_tokens, float_weight = tokens.bfloat16(), weight.float()
        return ReadingSpeeds(
            kernels=_speed(_product(weight, tokens)),
            float32=_speed(lambda: tokens @ float_weight),
            bfloat16=_speed(lambda: half_tokens @ weight),
        )
    finally:
        torch.set_num_threads(threads)


def _product(weight: Any, tokens: Any) -> Callable[[], None]:
    """Return a function that multiplies in the kernels.

    Args:
        weight: [WIDTH, WIDTH], bfloat16.
        tokens: [ROWS, WIDTH], float32.
    """
    library, packed, result = kernels(), weight.clone(), tokens.clone()
    library.pack_bf16(weight.data_ptr(), packed.data_ptr(), WIDTH, WIDTH)
    matrix = Matrix(0, WIDTH, WIDTH, WIDTH, packed.data_ptr())

    def multiply() -> None:
        check(library.linear(matrix, tokens.data_ptr(), result.data_ptr(), ROWS, 1))
        assert packed is not None  # the closure keeps the memory alive

    return multiply


def _speed(multiply: Callable[[], object]) -> float:
    multiply()
    return best_rate(2e-9 * ROWS * WIDTH * WIDTH, multiply, SECONDS)


def best_rate(amount: float, work: Callable[[], object], seconds: float) -> float:
    """Amount of work per second in the fastest of several repetitions, since other processes only
    slow it down. Repeats for about `seconds`."""
    times_s, end = list[float](), time.perf_counter() + seconds
    while not times_s or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start)
    return amount / min(times_s)
