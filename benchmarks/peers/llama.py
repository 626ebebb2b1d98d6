"""llama.cpp through `llama-cpp-python`, which has to be built for this processor to be a peer."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backend.decoding.benchmark import silenced_stderr

FORMATS = {"BF16": 32, "Q8_0": 7, "Q4_1": 3, "Q4_0": 2}  # the numbers of its file types
MIXES = {
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ3_XXS": 23,
    "IQ3_M": 27,
    "IQ2_M": 29,
    "IQ4_XS": 30,
}


def formats(
    gguf: Path,
    folder: Path,
    threads: int,
    types: Mapping[str, int] = FORMATS,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> Iterator[tuple[str, Path]]:
    """The model in llama.cpp's formats, converted by itself: first to bfloat16, then from that.
    `importance`: tensor -> mean squares of its inputs [in], as in a file of llama-imatrix."""
    import llama_cpp

    source, entries = gguf, importance or {}
    matrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # the last has no name
    for entry, (name, values) in zip(matrix, entries.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    for name, number in types.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread, settings.allow_requantize = number, threads, True
        if entries:
            settings.imatrix = matrix
        target = folder / f"{name}.gguf"
        with silenced_stderr():
            failed = llama_cpp.llama_model_quantize(
                str(source).encode(), str(target).encode(), ctypes.byref(settings)
            )
        if failed:
            sys.exit(f"llama.cpp could not convert {source.name} to {name}.")
        source = folder / "BF16.gguf" if (folder / "BF16.gguf").exists() else source
        yield name, target


class Llama:
    """One file, after a context of tokens."""

    def __init__(self, path: Path, context: Sequence[int], room: int, threads: int) -> None:
        import llama_cpp

        with silenced_stderr():
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=room,
                n_batch=room,
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                verbose=False,
            )
        self._length, self.bytes = len(context), path.stat().st_size
        if context:
            self._llama.eval(list(context))

    def tokenize(self, text: str) -> list[int]:
        return [*self._llama.tokenize(text.encode(), add_bos=False, special=False)]

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


class LlamaStreams:
    """Many sequences in one context, driven as llama.cpp's server does."""

    BATCH = 512  # tokens in a pass

    def __init__(self, path: Path, streams: int, room: int, threads: int) -> None:
        import llama_cpp as c

        self._c = c
        with silenced_stderr():
            c.llama_backend_init()
            model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
            settings = c.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_seq_max = room, self.BATCH, streams
            settings.n_threads = settings.n_threads_batch = threads
            settings.kv_unified = False
            self._context = c.llama_init_from_model(model, settings)
        self._vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self._batch = c.llama_batch_init(self.BATCH, 0, 1)

    def serve(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[float]]:
        """Answer all prompts; seconds from the request to each token."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        start, stamps = time.perf_counter(), [list[float]() for _ in prompts]
        texts, read = [list(prompt) for prompt in prompts], [0] * len(prompts)
        while any(len(own) < new for own in stamps):
            rows = list[tuple[int, int]]()  # sequence, position
            going = [n for n, own in enumerate(stamps) if len(own) < new]
            for n in sorted(going, key=lambda n: len(texts[n]) - read[n]):  # who writes comes first
                end = min(len(texts[n]), read[n] + self.BATCH - len(rows))
                rows += [(n, place) for place in range(read[n], end)]
                read[n] = end
            last = {n: row for row, (n, place) in enumerate(rows) if place == len(texts[n]) - 1}
            self._pass(rows, texts, set(last.values()))
            for n, row in last.items():
                logits = self._c.llama_get_logits_ith(self._context, row)
                texts[n].append(int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax()))
                stamps[n].append(time.perf_counter() - start)
        return stamps

    def _pass(
        self, rows: Sequence[tuple[int, int]], texts: list[list[int]], wanted: set[int]
    ) -> None:
        self._batch.n_tokens = len(rows)
        for row, (sequence, place) in enumerate(rows):
            self._batch.token[row] = texts[sequence][place]
            self._batch.pos[row], self._batch.logits[row] = place, row in wanted
            self._batch.n_seq_id[row], self._batch.seq_id[row][0] = 1, sequence
        if self._c.llama_decode(self._context, self._batch):
            sys.exit("llama.cpp could not run a pass.")

    def close(self) -> None:
        self._c.llama_free(self._context)
