"""The C structures and functions of `cpp/` (shapes are there), and building them for the processor
at hand, once, with the compiler the system has."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import CDLL, POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p, sizeof
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from backend.errors import SlimscopeError
from backend.settings import settings

SOURCES = Path(__file__).with_name("cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
NATIVE = (
    "-march=native",
)  # flags that choose the instructions of this processor, or for tests others
TIMEOUT_S = 300


def _fields(names: str, kind: Any = c_void_p) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names.split())


ROTARIES = 2  # kinds of layers that rotate in ways of their own
BLOCK = 16  # tokens of a block of a cache


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


PACKS = (c_void_p, c_void_p, c_int32, c_int32)
FUNCTIONS: dict[str, tuple[Any, Sequence[Any]]] = {  # name -> what it returns, what it takes
    "slimscope_instructions": (c_char_p, ()),
    "slimscope_acquire_threads": (None, ()),
    "slimscope_release_threads": (None, ()),
    "slimscope_supports": (c_int32, (c_int32,)),
    "slimscope_size_of": (c_int32, (c_int32,)),
    "slimscope_pack_bf16": (None, PACKS),
    "slimscope_pack_codes": (None, (*PACKS, c_int32)),
    "slimscope_pack_int4_2_4": (c_int32, PACKS),
    "slimscope_leave_out_zeros": (c_int64, (*(c_void_p,) * 4, c_int32, c_int32)),
    "slimscope_forward": (c_int32, (POINTER(Model), POINTER(Pass))),
    "slimscope_linear": (c_int32, (POINTER(Matrix), c_void_p, c_void_p, c_int32, c_int32)),
    "slimscope_top_k": (None, (c_void_p, *(c_int32,) * 3, *(c_void_p,) * 3)),
    "slimscope_keep": (None, (POINTER(Model), POINTER(Cache), c_int32, POINTER(c_int32), c_int32)),
}
NOT_EVERYWHERE = "slimscope_leave_out_zeros"  # a function for some processors only


def declare(library: CDLL) -> CDLL:
    """The library, whose functions then check the types of their arguments. Raises OSError: its
    structures or blocks have other sizes: it would read and write elsewhere."""
    for name, (result, arguments) in FUNCTIONS.items():
        if name != NOT_EVERYWHERE or hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    sizes = {x.__name__: sizeof(x) for x in (Matrix, Layer, Model, Cache, Pass)} | {"block": BLOCK}
    for place, (name, size) in enumerate(sizes.items()):
        if (found := library.slimscope_size_of(place)) != size:
            raise OSError(f"the size of a {name} is {found} in the library, and {size} here")
    return library


class CompilerError(SlimscopeError):
    """The decoder cannot be built here; models decode in PyTorch instead."""


@lru_cache
def library(target: tuple[str, ...] = NATIVE) -> ctypes.CDLL:
    """The decoder, loaded into this process; built first if it has not been. Raises CompilerError:
    it is turned off, there is no compiler, or it fails."""
    if not settings().native:
        raise CompilerError(
            "The native decoder is not used.",
            "SLIMSCOPE_NATIVE is false.",
            "Unset it to decode faster.",
        )
    try:
        path = _built(_compiler(), target)
        try:
            return declare(ctypes.CDLL(str(path)))
        except OSError:
            path.unlink(missing_ok=True)  # it is damaged, and built again next time
            raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{error}.") from error


def instructions(target: tuple[str, ...] = NATIVE) -> str:
    """The instructions the decoder was built for, such as AVX2; see `library`."""
    return str(library(target).slimscope_instructions().decode())


def _built(compiler: str, target: tuple[str, ...]) -> Path:
    """The file of the decoder, in a folder that is nobody else's."""
    folder = settings().cache_dir / "native"
    path = folder / f"decoder-{_key(compiler, target)}.so"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            part = path.with_suffix(".part")
            line = [compiler, *FLAGS, *target, str(SOURCES / "decoder.cpp"), "-o", str(part)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode:
                errors = [
                    *(x for x in done.stderr.splitlines() if "error" in x),
                    "It gave no reason.",
                ]
                raise _failed(f"{compiler} failed: {errors[0]}")
            part.chmod(0o700)
            part.replace(path)
    _check_private(path)
    return path


def _check_private(path: Path) -> None:
    """Raise `CompilerError` if another user could have put code there: a cache may be shared."""
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise CompilerError(
            "The native decoder is not used.",
            f"Other users can write to {path}.",
            "Set SLIMSCOPE_CACHE_DIR to a folder of your own, or correct the permissions.",
        )


def _compiler() -> str:
    chosen = os.environ.get("CXX", "")
    if found := next(filter(None, map(shutil.which, (chosen, *COMPILERS))), None):
        return found
    raise CompilerError(
        "The native decoder cannot be built.",
        "There is no C++ compiler.",
        "Install one, such as g++ (Debian: apt install g++), and try again.",
    )


def _key(compiler: str, target: tuple[str, ...]) -> str:
    """Changes with the source, the compiler and the processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S)
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*")))
    parts = (sources, version.stdout, " ".join(FLAGS + target).encode(), _processor())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return b"\n".join(sorted({x for x in lines if x.startswith((b"flags", b"model", b"Features"))}))


def _failed(why: str) -> CompilerError:
    do = "Install a current g++ or clang++, and make the cache folder writable."
    return CompilerError("The native decoder cannot be built.", why, do)
