"""Child processes with limits on CPU time and memory. They run the parts that untrusted files can
attack: parsers of file headers, tokenizers, chat templates.

    root    process without limits, one per process of ours; it only forks
    child   calls functions by name, within limits; its own forks share the modules it has imported

Each process exchanges JSON over its own socket, so a child can send only data. The process that
forked a child ends it and reports its exit code."""

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

WALL_TIME_FACTOR = 6  # wall-clock limit per second of CPU time, for busy machines
START_S = 60.0  # wall-clock limit of a fork
IMPORT_S = 60.0  # wall-clock limit of a call's imports
READ_S = 20.0  # CPU time to parse a file
PARSER_BYTES = 2 * 2**30  # memory to parse a file, on top of its size, as it may be mapped
MAX_RESULT_BYTES = 16 * 2**20
Channel: TypeAlias = "Connection[Any, Any]"
PARSERS = threading.BoundedSemaphore(2)  # at most two at a time
CODE_FOLDER = Path(__file__).resolve().parents[1]
SINGLE_THREADED = {  # environment: a fork has none of its parent's threads
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
TORCH_MODULES = {"backend.models.construction"}  # modules that may import torch


class LimitedChildError(Exception):
    """A call failed; the message is the reason, in one sentence."""


class OverrunError(LimitedChildError):
    """A call exceeded a limit; the message names it, such as "more than 2 s"."""


class LimitedChild:
    """Child process with limits. It ends with a call that fails other than by its own error.

    Args:
        memory: bytes that it may allocate on top of those it starts with.
        origin: process to fork; None: the root.
    """

    def __init__(self, memory: int, origin: LimitedChild | None = None) -> None:
        self._memory, self._origin, self._lock = memory, origin or _root(), threading.Lock()
        self._channel, child_end = Pipe()
        self._pid: int | None = None
        with child_end:
            try:
                self._pid = self._origin._request({"fork": memory}, START_S, child_end)["pid"]
            except (OSError, EOFError) as error:
                self._origin.abandon()
                raise LimitedChildError("Its process did not start.") from error

    def abandon(self) -> None:
        """End the process after a failed request, whose late reply would answer the next one."""
        self.close()

    @property
    def is_alive(self) -> bool:
        """True until the process is ended."""
        return self._pid is not None

    def call(
        self, function: str, *arguments: Any, seconds: float, imports: Sequence[str] = ()
    ) -> Any:
        """Call a function in the child and return its result.

        Args:
            function: "module:function"; it takes and returns JSON.
            seconds: limit of CPU time.
            imports: our own modules to import first, outside the limits.

        Raises:
            LimitedChildError: the call failed or exceeded a limit.
        """
        request = {
            "call": function,
            "arguments": arguments,
            "seconds": seconds,
            "imports": [function.partition(":")[0], *imports],
        }
        try:
            reply = self._request(request, IMPORT_S + WALL_TIME_FACTOR * seconds)
        except TimeoutError as error:
            self.close()
            raise OverrunError(f"more than {IMPORT_S + WALL_TIME_FACTOR * seconds:g} s") from error
        except (OSError, EOFError) as error:
            raise self._exit_error(seconds) from error
        if reply.get("memory"):
            self.close()
            raise self._too_large()
        if "why" in reply:
            raise LimitedChildError(reply["why"])
        return reply["answer"]

    def close(self) -> int:
        """End the process and return its exit code."""
        with self._lock:
            pid, self._pid = self._pid, None
            self._channel.close()
        if pid is None:
            return 0
        try:
            return int(self._origin._request({"end": pid}, START_S)["code"])
        except (OSError, EOFError):
            self._origin.abandon()
            return 0  # its origin has ended, so that the exit code is unknown

    def _request(
        self, request: dict[str, Any], seconds: float, shared: Channel | None = None
    ) -> dict[str, Any]:
        """Send a request, with the file descriptor of `shared`, and return the reply."""
        with self._lock:
            self._channel.send_bytes(json.dumps(request).encode())
            if shared:
                send_handle(self._channel, shared.fileno(), None)
            if not self._channel.poll(seconds):
                raise TimeoutError
            content = self._channel.recv_bytes()
        reply: dict[str, Any] = json.loads(content)
        return reply

    def _exit_error(self, seconds: float) -> LimitedChildError:
        """End the process and return the error that its exit code stands for."""
        code = -self.close()
        if code in (signal.SIGPROF, signal.SIGXCPU):
            return OverrunError(f"more than {seconds:g} s")
        if code in (signal.SIGKILL, signal.SIGABRT):
            return self._too_large()
        return LimitedChildError("It crashed.")

    def _too_large(self) -> OverrunError:
        return OverrunError(f"more than {readable_bytes(self._memory)} of memory")


class _Root(LimitedChild):
    """Process that all others are forked from."""

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), None
        self._channel, child_end = Pipe()
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "backend.limited", str(child_end.fileno())],
                cwd=CODE_FOLDER,
                env={**os.environ, **SINGLE_THREADED},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(child_end.fileno(),),
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def abandon(self) -> None:
        self._process.kill()
        self._process.wait()


_roots: list[_Root] = []  # at most one
_starting = threading.Lock()
os.register_at_fork(after_in_child=_roots.clear)  # a fork of this process starts another


def _root() -> _Root:
    with _starting:
        if not _roots or not _roots[0].is_alive:
            _roots[:] = [_Root()]
        return _roots[0]


# files --------------------------------------------------------------------------------------------


def read(parser: str, path: Path, stamp: Hashable = None, mapped_bytes: int = 0) -> Any:
    """Parse a file in a limited child; the result is cached until the file changes.

    Args:
        parser: "module:function", called with the path.
        path: file to parse.
        stamp: state of other files that the result depends on.
        mapped_bytes: size of the largest of the other files that the parser maps.

    Raises:
        LimitedChildError: the parser failed or exceeded a limit.
    """
    if not path.is_file():
        raise LimitedChildError("It is not a regular file.")
    state = path.stat()
    result = _read(parser, path, state.st_size + mapped_bytes, (state.st_mtime_ns, stamp))
    if isinstance(result, LimitedChildError):
        raise type(result)(str(result))  # each raise of one object lengthens its traceback
    return result


@lru_cache(maxsize=64)
def _read(parser: str, path: Path, size: int, stamp: Hashable) -> Any:
    """Return the parser's result, or the error: `lru_cache` does not cache exceptions."""
    with PARSERS:
        child = LimitedChild(PARSER_BYTES + size)
        try:
            return child.call(
                "backend.limited:run_parser",
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


def run_parser(parser: str, path: str) -> Any:
    """Call a parser. Called in the child."""
    return _function(parser)(Path(path))


# code of the processes ----------------------------------------------------------------------------


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def serve(channel: Channel) -> NoReturn:
    """Handle requests until the channel closes. Never returns."""
    memory = 0
    while True:
        try:
            request = json.loads(channel.recv_bytes())
        except (OSError, EOFError):
            os._exit(0)
        if "call" in request:
            _import(request.pop("imports"), memory)
            channel.send_bytes(_call(**request))
        elif "end" in request:
            os.kill(request["end"], signal.SIGKILL)  # not reaped yet, so that its id is not reused
            _, status = os.waitpid(request["end"], 0)
            _reply(channel, code=os.waitstatus_to_exitcode(status))
        else:
            shared = recv_handle(channel)
            if pid := os.fork():
                os.close(shared)
                _reply(channel, pid=pid)
            else:
                channel.close()
                channel = Connection(shared)
                memory = request["fork"]
                _limit_memory(memory)


def _reply(channel: Channel, **facts: int) -> None:
    channel.send_bytes(json.dumps(facts).encode())


def _limit_memory(memory: int) -> None:
    max_bytes = psutil.Process().memory_info().vms + memory
    for limit, value in ((resource.RLIMIT_AS, max_bytes), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # already lower, or unsupported
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _import(modules: Sequence[str], memory: int) -> None:
    """Import our own modules outside the memory limit: some builds of torch map gigabytes."""
    if missing := [module for module in modules if module not in sys.modules]:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if TORCH_MODULES.intersection(missing):
            sys.modules.pop("torch", None)
        for module in missing:
            import_module(module)
        _limit_memory(memory)


def _call(call: str, arguments: list[Any], seconds: float) -> bytes:
    """Call a function and encode its result, or the reason of its failure, as JSON. The process is
    killed when its CPU time is up."""
    try:
        function = _function(call)  # before the timer: our imports take seconds
        signal.setitimer(signal.ITIMER_PROF, seconds)
        text = json.dumps({"answer": function(*arguments)}).encode()
    except MemoryError:
        text = json.dumps({"memory": True}).encode()
    except SlimscopeError as error:
        text = json.dumps({"why": error.why}).encode()
    except BaseException as error:  # includes Rust panics: untrusted input can raise anything
        message = str(error).rstrip(".") or "no reason given"
        text = json.dumps({"why": f"{type(error).__name__}: {message}"[:300] + "."}).encode()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > MAX_RESULT_BYTES:
        text = json.dumps(
            {"why": f"Its result is too large: more than {MAX_RESULT_BYTES >> 20} MiB."}
        ).encode()
    return text


def main(descriptor: int) -> NoReturn:
    """Run the root process on an inherited socket."""
    sys.modules["torch"] = None  # type: ignore[assignment] # tokenizers load without torch
    serve(Connection(descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
