"""C++ sources of this package, built once, with the compiler the system has."""

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
    """C++ cannot be built here; PyTorch computes the same instead."""


class Unit(NamedTuple):
    """A source that is compiled by itself, with flags of its own. `needed`: the library is not
    built without it."""

    name: str
    source: str
    flags: tuple[str, ...] = ()
    needed: bool = True


def load(name: str, folder: Path, units: Sequence[Unit], declare: Callable[[CDLL], CDLL]) -> CDLL:
    """The library of some sources in a folder, loaded into this process; built first if it has not
    been. `declare`: gives its functions their types; may raise OSError: it is another. Raises
    CompilerError: it is turned off, there is no compiler, or it fails."""
    if not settings().native:
        raise CompilerError(
            "Native code is not used.",
            "SLIMSCOPE_NATIVE is false.",
            "Unset it to compute faster.",
        )
    try:
        path = _built(name, folder, units, _compiler())
        try:
            return declare(CDLL(str(path)))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)  # it is damaged, and built again next time
            raise
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{error}.") from error


@lru_cache
def kernel_version() -> str:
    """Changes with any C++ source of this package; empty where none is used."""
    if not settings().native:
        return ""
    return hashlib.sha256(_sources(Path(__file__).parent)).hexdigest()[:16]


def _sources(folder: Path) -> bytes:
    files = (path for path in folder.rglob("*") if path.suffix in (".cpp", ".h"))
    return b"\0".join(path.read_bytes() for path in sorted(files))


def _built(name: str, sources: Path, units: Sequence[Unit], compiler: str) -> Path:
    """The file of the library, in a folder that is nobody else's."""
    folder = settings().cache_dir / "native"
    # its name changes with the sources, the compiler and the kind of processor
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
    """The object file of a unit; None if the compiler is too old for it."""
    path = scratch / f"{unit.name}.o"
    source = str(sources / unit.source)
    try:
        _run([compiler, *FLAGS, *unit.flags, "-c", source, "-o", str(path)])
    except CompilerError:
        if unit.needed:
            raise
        return None
    return path


def _run(line: Sequence[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        errors = [*(x for x in done.stderr.splitlines() if "error" in x), "It gave no reason."]
        raise _failed(f"{line[0]} failed: {errors[0]}")


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


def _failed(why: str) -> CompilerError:
    return CompilerError(
        "Native code cannot be built.",
        why,
        "Install a current g++ or clang++, and make the cache folder writable.",
    )
