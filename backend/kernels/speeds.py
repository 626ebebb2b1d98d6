"""Speed of the kernels and of PyTorch at the products of a text, measured once on a machine.

A text is read by whatever is faster here, not by what the processor is called: which instructions
PyTorch uses depends on the libraries it was built with."""

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
SECONDS = 0.007  # of each measurement, of which there are three


Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ReadingSpeeds(BaseModel):
    """Operations a second on one thread, in billions: of the kernels, and of PyTorch by type."""

    kernels: Speed
    float32: Speed
    bfloat16: Speed

    def compared(self, precision: str) -> tuple[bool, str]:
        """True if the kernels are faster than PyTorch in this precision; and how they compare, in
        words."""
        name = "bfloat16" if precision == "bfloat16" else "float32"
        ratio = getattr(self, name) / self.kernels
        return ratio <= 1, f"the kernels take {ratio:.2f} of the time of PyTorch in {name}"


@lru_cache
def reading_speeds() -> ReadingSpeeds:
    """The speeds of this machine, kept in a file. Raises CompilerError: there are no kernels."""
    kernels()  # or nothing is measured
    path = _file()
    with suppress(OSError, ValueError):
        return ReadingSpeeds.model_validate_json(path.read_bytes())
    found = _measured()
    with suppress(OSError):  # it is measured again next time
        part = path.with_suffix(".part")
        part.write_text(found.model_dump_json())
        part.replace(path)
    return found


def _file() -> Path:
    """Of this machine and these versions, as the folder may be shared."""
    about = platform.node(), kernel_version(), version("torch"), *sorted(processor_flags())
    key = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    return settings().cache_dir / "native" / f"speeds-{key}.json"


def _measured() -> ReadingSpeeds:
    import torch  # here: it takes seconds that no other command needs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for the slowest on a busy machine
    try:
        weight = torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16)
        tokens, half = torch.ones(ROWS, WIDTH), torch.ones(ROWS, WIDTH, dtype=torch.bfloat16)
        whole = weight.float()
        return ReadingSpeeds(
            kernels=_speed(_product(weight, tokens)),
            float32=_speed(lambda: tokens @ whole),
            bfloat16=_speed(lambda: half @ weight),
        )
    finally:
        torch.set_num_threads(threads)


def _product(weight: Any, tokens: Any) -> Callable[[], None]:
    """The product of tensors [WIDTH, WIDTH] in bfloat16 and [ROWS, WIDTH] in float32."""
    library, packed, result = kernels(), weight.clone(), tokens.clone()
    library.pack_bf16(weight.data_ptr(), packed.data_ptr(), WIDTH, WIDTH)
    matrix = Matrix(0, WIDTH, WIDTH, WIDTH, packed.data_ptr())

    def multiply() -> None:
        check(library.linear(matrix, tokens.data_ptr(), result.data_ptr(), ROWS, 1))
        assert packed is not None  # it is kept as long as this function

    return multiply


def _speed(multiply: Callable[[], object]) -> float:
    """Of the fastest time: other processes only make it slower."""
    multiply()
    times, end = list[float](), time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - began)
    return 2e-9 * ROWS * WIDTH * WIDTH / min(times)
