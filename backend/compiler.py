"""Build of the C++ sources of this package, once per machine, with the compiler of the system."""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from filelock import FileLock

from backend.errors import SlimscopeError
from backend.settings import settings

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-shared",
    "-fPIC",
    "-pthread",
)
TIMEOUT_S = 300


class CompilerError(SlimscopeError):
    """C++ code cannot be built here. PyTorch is used instead."""


class Unit(NamedTuple):
    """Source file that is compiled to one object file.

    Attributes:
        name: name of the object file.
        source: name of the source file.
        flags: additional compiler flags.
        needed: False if the library may be built without it.
    """

    name: str
    source: str
    flags: tuple[str, ...] = ()
    needed: bool = True


def load(name: str, folder: Path, units: Sequence[Unit], declare: Callable[[CDLL], CDLL]) -> CDLL:
    """Load a library into this process; build it if needed.

    Args:
        name: name of the library.
        folder: folder of the sources.
        units: source files.
        declare: sets the types of its functions; raises `OSError` if the library is not the one
            expected.

    Raises:
        CompilerError: native code is disabled, there is no compiler, or it fails.
    """
    if not settings().native:
        raise CompilerError(
            "Native code is not used.",
            "SLIMSCOPE_NATIVE is false.",
            "Unset it for faster computation.",
        )
    try:
        path = _built(name, folder, units, _compiler())
        try:
            return declare(CDLL(str(path)))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)  # damaged; the next call builds it again
            raise
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{error}.") from error


@lru_cache
def kernel_version() -> str:
    """Return a hash of all C++ sources of this package; "" if native code is disabled."""
    if not settings().native:
        return ""
    return hashlib.sha256(_sources(Path(__file__).parent)).hexdigest()[:16]


def _sources(folder: Path) -> bytes:
    files = (path for path in folder.rglob("*") if path.suffix in (".cpp", ".h"))
    return b"\0".join(path.read_bytes() for path in sorted(files))


def _built(name: str, sources: Path, units: Sequence[Unit], compiler: str) -> Path:
    """Return the path of the library, built if needed, in a folder private to this user."""
    folder = settings().cache_dir / "native"
    # The name depends on the sources, the compiler, its flags and the architecture.
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S)
    flags = repr((FLAGS, *units)).encode()
    parts = (_sources(sources), version.stdout, flags, platform.machine().encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = folder / f"{name}-{key}.so"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            part = path.with_suffix(".part")
            with TemporaryDirectory(dir=folder) as scratch:
                work = partial(_compile, compiler, sources, Path(scratch))
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    objects = [x for x in threads.map(work, units) if x is not None]
                _run([compiler, *FLAGS, *map(str, objects), "-o", str(part)])
            part.chmod(0o700)
            part.replace(path)
    _check_private(path)
    return path


def _compile(compiler: str, sources: Path, scratch: Path, unit: Unit) -> Path | None:
    """Compile a unit; None if the compiler does not support it and it is not needed."""
    path = scratch / f"{unit.name}.o"
    source = str(sources / unit.source)
    try:
        _run([compiler, *FLAGS, *unit.flags, "-c", source, "-o", str(path)])
    except CompilerError:
        if unit.needed:
            raise
        return None
    return path


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if result.returncode:
        errors = [*(x for x in result.stderr.splitlines() if "error" in x), "It gave no reason."]
        raise _failed(f"{command[0]} failed: {errors[0]}")


def _check_private(path: Path) -> None:
    """Raise `CompilerError` if another user could have written the path, as in a shared cache."""
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise CompilerError(
            "Native code is not used.",
            f"Other users can write to {path}.",
            "Set SLIMSCOPE_CACHE_DIR to a folder of your own, or correct the permissions.",
        )


def _compiler() -> str:
    preferred = os.environ.get("CXX", "")
    if path := next(filter(None, map(shutil.which, (preferred, *COMPILERS))), None):
        return path
    raise CompilerError(
        "Native code cannot be built.",
        "There is no C++ compiler.",
        "Install one, such as g++ (Debian: apt install g++), and try again.",
    )


def _failed(reason: str) -> CompilerError:
    return CompilerError(
        "Native code cannot be built.",
        reason,
        "Install a current g++ or clang++, and make the cache folder writable.",
    )
