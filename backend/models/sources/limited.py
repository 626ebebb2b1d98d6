"""Parse a file from a stranger in a child process with limits on CPU time and memory:
`read("package.module:function", path)` is the function's answer, kept while the file is the same.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Hashable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import psutil

from backend.errors import ModelError

CPU_S, WALL_S = 20, 120  # seconds
MEMORY = 2 * 2**30  # bytes of address space, besides the file itself, which is mapped
MAX_ANSWER = 16 * 2**20  # characters
CODE = Path(__file__).resolve().parents[3]
CHILDREN = BoundedSemaphore(2)
TOO_LONG = f"Reading it takes more than {CPU_S} s of processor time."
TOO_MUCH = f"Reading it takes more than {MEMORY >> 30} GiB of memory."


class UnreadableFileError(Exception):
    """A file that its parser rejects; the message is the reason, one sentence."""


def read(parser: str, path: Path, stamp: Hashable = None) -> Any:
    """What `parser` ("module:function") answers about the file at `path`. `stamp`: of other files
    that the answer depends on. Raises UnreadableFileError: the parser failed or exceeded the
    limits."""
    if not path.is_file():
        raise UnreadableFileError("It is not a regular file.")
    state = path.stat()
    answer = _read(parser, path, (state.st_mtime_ns, state.st_size, stamp))
    if "why" in answer:
        raise UnreadableFileError(answer["why"])
    return answer["answer"]


@lru_cache(maxsize=64)
def _read(parser: str, path: Path, stamp: Hashable) -> Mapping[str, Any]:
    """The child's answer, or {"why": the reason there is none}."""
    command = [sys.executable, "-m", "backend.models.sources.limited", parser, str(path)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    try:
        with CHILDREN:
            done = subprocess.run(
                command,
                cwd=CODE,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=WALL_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return {"why": f"Reading it takes more than {WALL_S} s."}
    if -done.returncode == signal.SIGXCPU:
        return {"why": TOO_LONG}
    if -done.returncode in (signal.SIGKILL, signal.SIGABRT):  # by the system, by an allocator
        return {"why": TOO_MUCH}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"why": "Its parser crashed."}
    return answer


def main(parser: str, path: Path) -> str:
    """Parse a file under the limits; the answer as JSON."""
    module, _, function = parser.partition(":")
    parse = getattr(import_module(module), function)
    # what is imported by now does not count: builds of torch map files of gigabytes
    space = psutil.Process().memory_info().vms + MEMORY + path.stat().st_size
    limits = {resource.RLIMIT_CPU: CPU_S, resource.RLIMIT_AS: space, resource.RLIMIT_CORE: 0}
    for limit, most in limits.items():
        # At the hard limit of time Linux kills as it does for memory; a second before, it says why.
        hard = most + (limit == resource.RLIMIT_CPU)
        with suppress(ValueError, OSError):  # lower already, or not supported by the platform
            resource.setrlimit(limit, (most, hard))
    try:
        text = json.dumps({"answer": parse(path)})
    except MemoryError:
        return json.dumps({"why": TOO_MUCH})
    except ModelError as error:
        return json.dumps({"why": error.why})
    except Exception as error:  # on malformed files a parser can raise anything
        return json.dumps({"why": f"{type(error).__name__}: {error}."[:300]})
    return text if len(text) <= MAX_ANSWER else json.dumps({"why": "Its header is too large."})


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
