"""C++ sources of this package, built for the processor at hand, once, with the compiler the system
has."""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from ctypes import CDLL
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from backend.errors import SlimscopeError
from backend.settings import settings

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
NATIVE = (
    "-march=native",
)  # flags that choose the instructions of this processor, or for tests others
TIMEOUT_S = 300


class CompilerError(SlimscopeError):
    """C++ cannot be built here; PyTorch computes the same instead."""


def load(source: Path, declare: Callable[[CDLL], CDLL], target: tuple[str, ...] = NATIVE) -> CDLL:
    """The library of a C++ file and its headers, loaded into this process; built first if
    it has not been. `declare`: gives its functions their types; may raise OSError: it is another.
    Raises CompilerError: it is turned off, there is no compiler, or it fails."""
    if not settings().native:
        raise CompilerError(
            "Native code is not used.",
            "SLIMSCOPE_NATIVE is false.",
            "Unset it to compute faster.",
        )
    try:
        path = _built(source, _compiler(), target)
        try:
            return declare(CDLL(str(path)))
        except OSError:
            path.unlink(missing_ok=True)  # it is damaged, and built again next time
            raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{error}.") from error


def load_if_possible(source: Path, declare: Callable[[CDLL], CDLL]) -> CDLL | None:
    """`load`; None where it cannot be: PyTorch computes the same there."""
    try:
        return load(source, declare)
    except CompilerError:
        return None


@lru_cache
def kernel_version() -> str:
    """Changes with any C++ source of this package; empty where none is used."""
    if not settings().native:
        return ""
    files = (x for x in Path(__file__).parent.rglob("*") if x.suffix in (".cpp", ".h"))
    sources = b"\0".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(sources).hexdigest()[:16]


def _built(source: Path, compiler: str, target: tuple[str, ...]) -> Path:
    """The file of the library, in a folder that is nobody else's."""
    folder = settings().cache_dir / "native"
    # its name changes with the source, any header of this package, the compiler and the processor
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S)
    files = {*source.parent.glob("*.[ch]*"), *Path(__file__).parent.rglob("*.h")}
    sources = b"".join(file.read_bytes() for file in sorted(files))
    parts = (sources, version.stdout, " ".join(FLAGS + target).encode(), _processor())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = folder / f"{source.stem}-{key}.so"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            part = path.with_suffix(".part")
            line = [compiler, *FLAGS, *target, str(source), "-o", str(part)]
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
            "Native code is not used.",
            f"Other users can write to {path}.",
            "Set SLIMSCOPE_CACHE_DIR to a folder of your own, or correct the permissions.",
        )


def _compiler() -> str:
    chosen = os.environ.get("CXX", "")
    if found := next(filter(None, map(shutil.which, (chosen, *COMPILERS))), None):
        return found
    raise CompilerError(
        "Native code cannot be built.",
        "There is no C++ compiler.",
        "Install one, such as g++ (Debian: apt install g++), and try again.",
    )


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return b"\n".join(sorted({x for x in lines if x.startswith((b"flags", b"model", b"Features"))}))


def _failed(why: str) -> CompilerError:
    return CompilerError(
        "Native code cannot be built.",
        why,
        "Install a current g++ or clang++, and make the cache folder writable.",
    )
