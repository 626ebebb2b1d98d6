"""llama.cpp in a process of its own: it and PyTorch do not share matrix units.

The process gets pickled calls on its standard input, and answers each with a result and the time
it took there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.peers import llama
from benchmarks.shared.timing import Taken, timed


class LlamaProcess:
    """A process with one file open, or none."""

    def __init__(self, *opened: object) -> None:
        line = [sys.executable, "-m", "benchmarks.peers.llama_process"]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.call("open", *opened)

    def call(self, name: str, *arguments: object) -> tuple[Any, Taken]:
        """The result of a call, and its time there. Ends the program if the process has ended."""
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
            found: tuple[Any, Taken] = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            sys.exit(f"llama.cpp has ended with {self._process.wait()}.")
        return found

    def close(self) -> None:
        self._process.communicate()


def formats(gguf: Path, folder: Path, threads: int) -> dict[str, Path]:
    """See `llama.formats`."""
    process = LlamaProcess()
    found: dict[str, Path] = process.call("formats", gguf, folder, threads)[0]
    process.close()
    return found


class RemoteLlama:
    """A `llama.Llama` in its process. `taken`: time of the last call there."""

    def __init__(self, path: Path, context: Sequence[int], room: int, threads: int) -> None:
        self._process = LlamaProcess(path, [*context], room, threads)
        self.bytes, self.taken = path.stat().st_size, Taken(0, 0)

    def _call(self, name: str, *arguments: object) -> Any:
        result, self.taken = self._process.call(name, *arguments)
        return result

    def logits(self, tokens: Sequence[int]) -> Tensor:
        found: Tensor = self._call("logits", [*tokens])
        return found

    def write(self, first: int, number: int) -> list[int]:
        written: list[int] = self._call("write", first, number)
        return written

    def rewind(self, length: int | None = None) -> None:
        self._call("rewind", length)


def serve() -> None:
    """Answer calls until the input ends. What llama.cpp prints goes to the error stream."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    own: llama.Llama | None = None
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if name == "open":
            own = llama.Llama(*arguments) if arguments else None
        pickle.dump(_answer(own, name, arguments), answers)
        answers.flush()


def _answer(own: llama.Llama | None, name: str, arguments: Sequence[Any]) -> tuple[Any, Taken]:
    results = list[Any]()
    if name == "open":
        return None, Taken(0, 0)
    if name == "formats":
        return dict(llama.formats(*arguments)), Taken(0, 0)
    taken = timed(lambda: results.append(getattr(own, name)(*arguments)))
    return results[0], taken


if __name__ == "__main__":
    serve()
