"""Child processes with limits on CPU time and memory, for what strangers have written: headers of
files, tokenizers, chat templates.

    root    a process without limits, one for each of ours; it only forks
    child   calls functions by name, with limits; what it has loaded, its own forks have, too

Each speaks JSON over a socket of its own: what a child sends is data alone. The process that has
forked a child ends it, and tells how it ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import psutil

from backend.errors import SlimscopeError
from backend.printable import readable_bytes

PATIENCE = 6  # times as many seconds by the clock as of CPU time, on a busy machine
START_S = 60.0  # until a process has forked, by the clock
IMPORT_S = 60.0  # until the module of a call is imported, by the clock
READ_S = 20.0  # CPU seconds to parse a file
MEMORY = 2 * 2**30  # bytes to parse a file in, besides the file itself, which is mapped
MAX_ANSWER = 16 * 2**20  # bytes
Channel: TypeAlias = "Connection[Any, Any]"
READING = threading.BoundedSemaphore(2)
CODE = Path(__file__).resolve().parents[1]
SINGLE = {
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # or a fork would wait for threads that it does not have
}
TORCH_MODULES = {"backend.models.construction"}  # no other call may import torch


class LimitedChildError(Exception):
    """A call that failed; the message is the reason, one sentence."""


class OverrunError(LimitedChildError):
    """A call that exceeded a limit, such as "more than 2 s"."""


class LimitedChild:
    """A child process that may take `memory` bytes besides those it begins with. `origin`: what it
    is forked from. A call that fails for another reason than its own error ends the child."""

    def __init__(self, memory: int, origin: LimitedChild | None = None) -> None:
        self._memory, self._origin, self._lock = memory, origin or _root(), threading.Lock()
        self._channel, theirs = Pipe()
        self._pid: int | None = None
        with theirs:
            try:
                self._pid = self._origin._asked({"fork": memory}, START_S, theirs)["pid"]
            except (OSError, EOFError) as error:
                raise LimitedChildError("Its process did not start.") from error

    @property
    def is_alive(self) -> bool:
        return self._pid is not None

    def call(
        self, function: str, *arguments: Any, seconds: float, imports: Sequence[str] = ()
    ) -> Any:
        """Call "module:function", which takes and returns JSON, with a limit of CPU `seconds`.
        `imports`: modules of ours that are imported first, without limits. Raises
        LimitedChildError: the call failed or exceeded the limits."""
        request = {
            "call": function,
            "arguments": arguments,
            "seconds": seconds,
            "imports": [function.partition(":")[0], *imports],
        }
        try:
            found = self._asked(request, IMPORT_S + PATIENCE * seconds)
        except TimeoutError as error:
            self.close()
            raise OverrunError(f"more than {IMPORT_S + PATIENCE * seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise self._ended(seconds) from error
        if found.get("memory"):
            self.close()
            raise self._too_large()
        if "why" in found:
            raise LimitedChildError(found["why"])
        return found["answer"]

    def close(self) -> int:
        """End the process, and tell its exit code."""
        with self._lock:
            pid, self._pid = self._pid, None
            self._channel.close()
        if pid is None:
            return 0
        with suppress(OSError, EOFError, LimitedChildError):
            return int(self._origin._asked({"end": pid}, START_S)["code"])
        return 0  # with its origin, from which no code can come

    def _asked(
        self, request: dict[str, Any], seconds: float, shared: Channel | None = None
    ) -> dict[str, Any]:
        with self._lock:
            self._channel.send_bytes(json.dumps(request).encode())
            if shared:
                send_handle(self._channel, shared.fileno(), None)
            if not self._channel.poll(seconds):
                raise TimeoutError
            content = self._channel.recv_bytes()
        found: dict[str, Any] = json.loads(content)
        return found

    def _ended(self, seconds: float) -> LimitedChildError:
        """The reason why the process has ended."""
        code = -self.close()
        if code in (signal.SIGPROF, signal.SIGXCPU):
            return OverrunError(f"more than {seconds:g} s")
        if code in (signal.SIGKILL, signal.SIGABRT):
            return self._too_large()
        return LimitedChildError("It crashed.")

    def _too_large(self) -> OverrunError:
        return OverrunError(f"more than {readable_bytes(self._memory)} of memory")


class _Root(LimitedChild):
    """The process that all others are forked from."""

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), None
        self._channel, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend.limited", str(theirs.fileno())],
                cwd=CODE,
                env={**os.environ, **SINGLE},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None


_roots: list[_Root] = []  # one, at most
_starting = threading.Lock()
os.register_at_fork(after_in_child=_roots.clear)  # a fork of this process needs one of its own


def _root() -> _Root:
    with _starting:
        if not _roots or not _roots[0].is_alive:
            _roots[:] = [_Root()]
        return _roots[0]


# files --------------------------------------------------------------------------------------------


def read(parser: str, path: Path, stamp: Hashable = None) -> Any:
    """Return the result of `parser` ("module:function") for the file at `path`, cached until the
    file changes. `stamp`: state of other files that the result depends on. Raises
    LimitedChildError: the parser failed or exceeded the limits."""
    if not path.is_file():
        raise LimitedChildError("It is not a regular file.")
    state = path.stat()
    answer = _read(parser, path, state.st_size, (state.st_mtime_ns, stamp))
    if isinstance(answer, LimitedChildError):
        raise answer
    return answer


@lru_cache(maxsize=64)
def _read(parser: str, path: Path, size: int, stamp: Hashable) -> Any:
    """The answer, or the error that there is instead."""
    with READING:
        child = LimitedChild(MEMORY + size)
        try:
            return child.call(
                "backend.limited:parsed",
                parser,
                str(path),
                seconds=READ_S,
                imports=[parser.partition(":")[0]],
            )
        except OverrunError as error:
            return OverrunError(f"Reading it takes {error}.")
        except LimitedChildError as error:
            return error
        finally:
            child.close()


def parsed(parser: str, path: str) -> Any:
    """The answer of a parser; called in the child."""
    return _function(parser)(Path(path))


# in the processes ---------------------------------------------------------------------------------


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def serve(channel: Channel) -> NoReturn:
    """Fork and call until the channel closes."""
    memory = 0
    while True:
        try:
            request = json.loads(channel.recv_bytes())
        except (OSError, EOFError):
            os._exit(0)
        if "call" in request:
            _import(request.pop("imports"), memory)
            channel.send_bytes(_outcome(**request))
        elif "end" in request:
            os.kill(request["end"], signal.SIGKILL)  # not reaped: no other has its number
            _, status = os.waitpid(request["end"], 0)
            _tell(channel, code=os.waitstatus_to_exitcode(status))
        else:
            shared = recv_handle(channel)
            if pid := os.fork():
                os.close(shared)
                _tell(channel, pid=pid)
            else:
                channel.close()
                channel = Connection(shared)
                memory = request["fork"]
                _limit_memory(memory)


def _tell(channel: Channel, **facts: int) -> None:
    channel.send_bytes(json.dumps(facts).encode())


def _limit_memory(memory: int) -> None:
    most = psutil.Process().memory_info().vms + memory
    for limit, value in ((resource.RLIMIT_AS, most), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # lower already, or not supported by the platform
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _import(modules: Sequence[str], memory: int) -> None:
    """Import our own modules outside the memory limit: builds of torch map files of gigabytes."""
    if missing := [module for module in modules if module not in sys.modules]:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if TORCH_MODULES.intersection(missing):
            sys.modules.pop("torch", None)
        for module in missing:
            import_module(module)
        _limit_memory(memory)


def _outcome(call: str, arguments: list[Any], seconds: float) -> bytes:
    """The answer as JSON, or why there is none. At the end of its time, the process ends."""
    try:
        function = _function(call)  # imports take seconds, and are ours
        signal.setitimer(signal.ITIMER_PROF, seconds)
        text = json.dumps({"answer": function(*arguments)}).encode()
    except MemoryError:
        text = json.dumps({"memory": True}).encode()
    except SlimscopeError as error:
        text = json.dumps({"why": error.why}).encode()
    except BaseException as error:  # of Rust's panics, too; a stranger's code can raise anything
        said = str(error).rstrip(".") or "no reason given"
        text = json.dumps({"why": f"{type(error).__name__}: {said}"[:300] + "."}).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > MAX_ANSWER:
        text = json.dumps(
            {"why": f"Its result is too large: more than {MAX_ANSWER >> 20} MiB."}
        ).encode()
    return text


def main(descriptor: int) -> NoReturn:
    sys.modules["torch"] = None  # type: ignore[assignment] # transformers reads tokenizers without
    serve(Connection(descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
