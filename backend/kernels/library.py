"""C structures and functions of the kernels, and the choice of the instruction set.

`cpp/interface.h` documents the structures and their shapes. The sources are compiled once per
instruction set into a single library, which machines with different processors can share. The best
instruction set is used that the processor, its operating system and the compiler support."""

import ctypes
import hashlib
import logging
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL, CFUNCTYPE, POINTER, Structure, c_float, c_int32, c_int64, c_void_p, sizeof
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from backend.compiler import CompilerError, Unit, kernel_version, load
from backend.settings import settings

SOURCES = Path(__file__).with_name("cpp")
ROTARIES = 2  # maximum number of rotary tables of a model
BLOCK = 16  # tokens per cache block
PROCESSOR = Path("/proc/cpuinfo")
TRIAL_TIMEOUT_S = 60.0
TILE_PERMISSION = (158, 0x1023, 18)  # arch_prctl(ARCH_REQ_XCOMP_PERM, tile data)

log = logging.getLogger("slimscope.kernels")


def _fields(names: str, kind: Any = c_void_p) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


class Matrix(Structure):
    _fields_ = (
        *_fields("format outputs inputs group", c_int32),
        *_fields("weights masks starts scales zeros bias"),
    )


class Layer(Structure):
    _fields_ = (
        *_fields("qkv out gate up down", Matrix),
        *_fields("attention_norm mlp_norm query_norm key_norm attention_out_norm mlp_out_norm"),
        *_fields("window rotary", c_int32),
    )


class Model(Structure):
    _fields_ = (
        *_fields("layers width heads kv_heads head inner rotated activation", c_int32),
        *_fields("epsilon embedding_scale", c_float),
        *_fields("attention_scale attention_cap logit_scale logit_cap", c_float),
        ("embedding", c_void_p),
        ("layer", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("read_out", Matrix),
        *_fields("cosines sines", c_void_p * ROTARIES),
    )


class Cache(Structure):
    _fields_ = (*_fields("capacity length", c_int32), ("blocks", c_void_p))


class Pass(Structure):
    _fields_ = (
        *_fields("tokens read_out threads sequences", c_int32),
        ("caches", POINTER(POINTER(Cache))),
        *_fields("starts ids inputs positions visible rows hidden logits"),
    )


class Descent(Structure):
    _fields_ = (
        *_fields("start dense H W errors"),
        *_fields("rows inputs steps kind keep", c_int32),
        *_fields("step shrink", c_float),
    )


class Rows(Structure):
    _fields_ = (
        *_fields("start dense A B scale zero m"),
        *_fields("rows columns group rank top", c_int32),
        ("factor", c_float),
    )


STRUCTURES = (Matrix, Layer, Model, Cache, Pass, Descent, Rows)
_INTS = (c_int32,) * 3
_PACK = (c_void_p, c_void_p, c_int32, c_int32)
_ROWS = POINTER(Rows)
FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {  # name -> result type, argument types
    "pack_bf16": (None, _PACK),
    "pack_codes": (None, (*_PACK, c_int32)),
    "pack_2_4": (c_int32, _PACK),
    "leave_out_zeros": (c_int64, (c_void_p, c_void_p, *_PACK)),
    "forward": (c_int32, (POINTER(Model), POINTER(Pass))),
    "linear": (c_int32, (POINTER(Matrix), *_PACK)),
    "top_k": (None, (c_void_p, *_INTS, *(c_void_p,) * 3)),
    "keep": (None, (POINTER(Model), POINTER(Cache), c_int32, POINTER(c_int32), c_int32)),
    "add_gram": (c_int32, (c_void_p, c_void_p, *_INTS)),
    "descend": (c_int32, (POINTER(Descent), c_int32)),
    "values": (c_int32, (_ROWS, c_void_p, c_int32, c_int32)),
    "backward": (c_int32, (_ROWS, *(c_void_p,) * 3, c_int32, c_int32)),
    "levels": (c_int32, (_ROWS, c_void_p, c_void_p, c_int32)),
    "snapshot_statistics": (None, (_ROWS, *(c_void_p,) * 5)),
    "gptq_columns": (
        None,
        (
            *(c_void_p, c_int64) * 2,
            *(c_void_p, c_void_p, c_int32),
            *(c_void_p,) * 3,
            *(c_int32, c_int32),
        ),
    ),
    "grid_errors": (None, (*(c_void_p,) * 5, c_int64, *(c_int32,) * 4)),
}


FLAGS = "bfloat16 two_of_four block panel"


class _Table(Structure):
    _fields_ = (
        ("sizes", c_int32 * len(STRUCTURES)),
        *_fields(FLAGS, c_int32),
        *((name, CFUNCTYPE(result, *takes)) for name, (result, takes) in FUNCTIONS.items()),
    )


class InstructionSet(NamedTuple):
    """Instruction set for which the kernels are compiled.

    Attributes:
        title: display name.
        flags: compiler flags.
        needs: required processor flags, as named in /proc/cpuinfo.
    """

    title: str
    flags: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def more(self, title: str, flags: str, needs: str) -> "InstructionSet":
        """Return an extended instruction set.

        Args:
            title: display name.
            flags: additional compiler flags, separated by spaces.
            needs: additional processor flags, separated by spaces.
        """
        return InstructionSet(title, (*self.flags, *flags.split()), (*self.needs, *needs.split()))


PLAIN = InstructionSet("plain")
_AVX2 = PLAIN.more("AVX2", "-mavx2 -mfma -mf16c -mbmi2", "avx2 fma f16c bmi2")
_AVX512 = _AVX2.more(
    "AVX-512",
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mpopcnt",
    "avx512f avx512bw avx512dq avx512vl popcnt",
)
_VNNI = _AVX512.more("AVX-512 with VNNI", "-mavx512vnni", "avx512_vnni")
_BF16 = _VNNI.more(
    "AVX-512 with BF16 and VNNI", "-mavx512bf16 -mavx512vbmi2", "avx512_bf16 avx512_vbmi2"
)
_AMX = _BF16.more(
    "AMX with BF16 and INT8", "-mamx-tile -mamx-bf16 -mamx-int8", "amx_tile amx_bf16 amx_int8"
)
_X86 = {"amx": _AMX, "bf16": _BF16, "vnni": _VNNI, "avx512": _AVX512, "avx2": _AVX2}
_ARM = {"neon_dot": PLAIN.more("NEON with dot products", "-march=armv8.2-a+dotprod", "asimddp")}


def instruction_sets() -> dict[str, InstructionSet]:
    """Map name -> instruction set for the architecture of this processor, best first."""
    architecture = platform.machine().lower()
    if architecture in ("x86_64", "amd64"):
        return {**_X86, "plain": PLAIN}
    if architecture in ("aarch64", "arm64"):
        return {**_ARM, "plain": PLAIN._replace(title="NEON")}
    return {"plain": PLAIN}


class Kernels(SimpleNamespace):
    """Functions of one instruction set.

    The functions check the types of their arguments. Functions that the instruction set does not
    accelerate are null pointers, which are false.

    Attributes:
        title: display name of the instruction set.
        bfloat16: 1 if there are bfloat16 products and sparse bfloat16 matrices are supported.
        two_of_four: 1 if 2:4 matrices of codes are supported.
        panel: the right factor of a descent is padded to a multiple of this number of outputs.

    Raises:
        OSError: the structures of the library differ in size, so calls would corrupt memory.
    """

    def __init__(self, library: CDLL, name: str, title: str = "") -> None:
        table = _Table.in_dll(library, f"slimscope_{name}")
        sizes = {x.__name__: sizeof(x) for x in STRUCTURES} | {"block": BLOCK}
        library_sizes = (*table.sizes, table.block)
        for (structure, size), library_size in zip(sizes.items(), library_sizes, strict=True):
            if size != library_size:
                problem = f"the size of {structure} is {library_size} in the library, {size} here"
                raise OSError(problem)
        super().__init__(**{field: getattr(table, field) for field in (*FLAGS.split(), *FUNCTIONS)})
        self.library, self.name, self.title = library, name, title or name


def _declare(library: CDLL) -> CDLL:
    for function in (library.slimscope_acquire_threads, library.slimscope_release_threads):
        function.restype, function.argtypes = None, ()
    Kernels(library, "plain")
    return library


@lru_cache
def library() -> CDLL:
    """Load the library with all instruction sets that the compiler supports; build it if needed.

    Raises:
        CompilerError: native code is disabled, there is no compiler, or it fails.
    """
    units = [Unit("threads", "threads.cpp")]
    # Plain first: several units instantiate the same templates of the standard library, and the
    # linker keeps the first instance, which must run on every processor.
    for name, instructions in reversed(instruction_sets().items()):
        flags = (*instructions.flags, f"-DSLIMSCOPE_SET=slimscope_{name}")
        units.append(Unit(name, "instruction_set.cpp", flags, needed=name == "plain"))
    return load("kernels", SOURCES, units, _declare)


@lru_cache
def processor_flags() -> frozenset[str]:
    """Read the flags of this processor, as named in /proc/cpuinfo."""
    with suppress(OSError):
        for line in PROCESSOR.read_text(errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(flags.split())
    return frozenset(_ARM["neon_dot"].needs if platform.system() == "Darwin" else ())


@lru_cache
def tiles_permitted() -> bool:
    """Request permission to use AMX tile registers. Linux requires it once per process; a child
    process that executes another program has to request it again."""
    with suppress(OSError, AttributeError):
        return CDLL(None).syscall(*map(ctypes.c_long, TILE_PERMISSION)) == 0
    return False


def obstacle(name: str) -> str:
    """Return the reason why an instruction set cannot be used here; "" if it can."""
    if missing := [x for x in instruction_sets()[name].needs if x not in processor_flags()]:
        return f"the processor has no {', '.join(missing)}"
    if name == "amx" and not tiles_permitted():
        return "the system does not permit tile registers"
    if not hasattr(library(), f"slimscope_{name}"):
        return "the compiler does not know the instructions"
    if not _passes_trial(name):
        return "the processor fails at the instructions that it claims to have"
    return ""


@lru_cache
def _passes_trial(name: str) -> bool:
    """Try an instruction set in a child process, once per machine: virtual machines may announce
    instructions that they do not execute."""
    passed = machine_file(f"trial of {name}")
    if name == "plain" or passed.exists():
        return True
    command = (sys.executable, "-m", "backend.kernels.trial", name)
    try:
        failed = subprocess.run(command, capture_output=True, timeout=TRIAL_TIMEOUT_S).returncode
    except (OSError, subprocess.TimeoutExpired):  # a busy machine: no result
        return True
    with suppress(OSError):
        if not failed:
            passed.touch(mode=0o600)
    return not failed


def machine_file(content: str) -> Path:
    """Path of a file in the cache about this machine. Its name depends on machine and versions,
    since machines may share the folder."""
    parts = content, platform.node(), kernel_version(), version("torch"), *sorted(processor_flags())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return settings().cache_dir / "native" / f"machine-{key}.json"


@lru_cache
def kernels(name: str = "") -> Kernels:
    """Load the functions of an instruction set.

    Args:
        name: name of the instruction set; "" for the best one.

    Raises:
        CompilerError: the instruction set cannot be used, or the library cannot be built.
    """
    if name:
        if why := obstacle(name):
            advice = "Choose another instruction set."
            raise CompilerError(f"No kernels for {name}.", f"{why.capitalize()}.", advice)
        return Kernels(library(), name, instruction_sets()[name].title)
    best = next(name for name in instruction_sets() if not obstacle(name))
    log.info("Kernels use %s.", described(best))
    return Kernels(library(), best, instruction_sets()[best].title)


def described(name: str) -> str:
    """Describe an instruction set, with the reasons why better ones are not used."""
    sets, reasons = instruction_sets(), []
    for better in [*sets][: [*sets].index(name)]:
        reasons.append(f"not {sets[better].title}: {obstacle(better)}")
    return f"{sets[name].title} ({'; '.join(reasons)})" if reasons else sets[name].title


@lru_cache
def kernels_or_none() -> Kernels | None:
    """Load the best kernels; None if there are none, in which case PyTorch is used."""
    try:
        return kernels()
    except CompilerError:
        return None


def check(result: int) -> None:
    """Raise `MemoryError` if a kernel returned 1, which means that memory or threads ran out."""
    if result:
        raise MemoryError("A kernel ran out of memory or threads.")
