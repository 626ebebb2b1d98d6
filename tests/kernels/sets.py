"""Each instruction set on any machine: in hardware where there is one, else in plain C++."""

from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

from backend.compiler import CompilerError, Unit, load
from backend.kernels.library import (
    SOURCES,
    Kernels,
    instruction_sets,
    kernels,
    obstacle,
)

EMULATED = Path(__file__).with_name("emulated.h")
LEVELS = {"avx2": 1, "avx512": 2, "vnni": 3, "bf16": 4, "amx": 5}
X86 = (*reversed(LEVELS), "plain")
FOREIGN = {  # of ARM: name -> macros of its emulation
    "neon": ("-DNEON_EMULATED",),
    "neon_dot": ("-DNEON_EMULATED", "-D__ARM_FEATURE_DOTPROD"),
}
NAMES = (*X86, *FOREIGN)
VARIANTS = ("best", "avx2", "plain")


def in_hardware(name: str) -> bool:
    """True if this processor has the instructions."""
    return name in instruction_sets() and not obstacle(name)


def kernel_set(name: str) -> Kernels:
    """The kernels of an instruction set, or the best ones of this machine; emulated where the
    processor lacks it."""
    try:
        if name == "best" or in_hardware(name):
            return kernels("" if name == "best" else name)
        return _emulated(name)
    except CompilerError as error:
        pytest.skip(str(error))


@cache
def _emulated(name: str) -> Kernels:
    """Compiled with the instructions of this processor that lie below, the others in plain C++."""
    flags: tuple[str, ...] = FOREIGN.get(name, ())
    if name in LEVELS:
        lower = [x for x in LEVELS if LEVELS[x] < LEVELS[name] and in_hardware(x)]
        below = instruction_sets()[lower[-1]].flags if lower else ()
        flags = (*below, f"-DEMULATED={LEVELS[name]}")
    flags = (*flags, "-O1", "-include", str(EMULATED), f"-DSLIMSCOPE_SET=slimscope_{name}")
    version = sha256(EMULATED.read_bytes()).hexdigest()[:16]
    units = [Unit("threads", "threads.cpp"), Unit(version, "instruction_set.cpp", flags)]
    return Kernels(load(f"emulated-{name}", SOURCES, units, lambda built: built), name)


def tiles_in_use(kernels: Kernels) -> bool:
    """True if the emulated kernels have left tiles configured in this thread."""
    return bool(kernels.library.emulated_tiles_in_use())
