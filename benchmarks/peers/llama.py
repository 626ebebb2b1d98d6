"""llama.cpp through `llama-cpp-python`, which has to be built for this processor to be a peer."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backend.decoding.llama_cpp import quiet

FORMATS = {"BF16": 32, "Q8_0": 7, "Q4_1": 3, "Q4_0": 2}  # the numbers of its file types


def formats(gguf: Path, folder: Path, threads: int) -> Iterator[tuple[str, Path]]:
    """The model in llama.cpp's formats, converted by itself: first to bfloat16, then from that."""
    import llama_cpp

    source = gguf
    for name, number in FORMATS.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize = number, threads, True
        target = folder / f"{name}.gguf"
        with quiet():
            failed = llama_cpp.llama_model_quantize(
                str(source).encode(), str(target).encode(), ctypes.byref(settings)
            )
        if failed:
            sys.exit(f"llama.cpp could not convert {source.name} to {name}.")
        source = folder / "BF16.gguf"
        yield name, target


class Llama:
    """One file, after a context of tokens."""

    def __init__(self, path: Path, context: Sequence[int], room: int, threads: int) -> None:
        import llama_cpp

        with quiet():
            self._llama = llama_cpp.Llama(
                str(path), n_ctx=room, n_batch=room, n_threads=threads, n_threads_batch=threads,
                logits_all=True, verbose=False,
            )  # fmt: skip
        self._length, self.bytes = len(context), path.stat().st_size
        self._llama.eval(list(context))

    def logits(self, tokens: Sequence[int]) -> Tensor:
        self._llama.eval(list(tokens))
        end = self._llama.n_tokens
        return torch.from_numpy(self._llama.scores[end - len(tokens) : end])

    def write(self, first: int, number: int) -> list[int]:
        written = [first]
        for _ in range(number):
            self._llama.eval(written[-1:])
            written.append(int(self._llama.scores[self._llama.n_tokens - 1].argmax()))
        return written[1:]

    def rewind(self, length: int | None = None) -> None:
        self._llama.n_tokens = self._length if length is None else length
