"""llama.cpp as a decoder: what a user would run instead, timed on the same prompts. It is optional
and should be built for this processor (CMAKE_ARGS=-DGGML_NATIVE=ON). Decodes greedily."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend.decoding.cost_model import LapTimer
from backend.decoding.draft_tree import NO_TREE, NoDraft, Proposer
from backend.decoding.serving.request import DecodeStep


class LlamaCppDecoder:
    """A GGUF file decoded by llama.cpp, with room for the longest prompt and its response."""

    device = torch.device("cpu")

    def __init__(self, file: Path, capacity: int) -> None:
        import llama_cpp

        self.proposer: Proposer = NoDraft()
        self._library = llama_cpp
        threads = torch.get_num_threads()
        with quiet():
            self._model: Any = llama_cpp.Llama(
                str(file),
                n_ctx=capacity,
                n_batch=min(capacity, 512),
                n_threads=threads,
                n_threads_batch=threads,
                verbose=False,
            )
        self._vocabulary = int(self._model.n_vocab())

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        """Generate up to `limit` tokens after `prompt`; stop after a token of `ends`."""
        clock = LapTimer(self.device)
        self._model.reset()
        token = self._next(prompt)
        yield DecodeStep([token], [0], [], NO_TREE, [token], {"prefill": clock.lap()})
        for _ in range(limit - 1):
            if token in ends:
                return
            clock.lap()
            root, token = token, self._next([token])
            parts = {"draft": 0.0, "verify": clock.lap(), "accept": 0.0, "cache": 0.0}
            yield DecodeStep([token], [0], [0], NO_TREE, [root], parts)

    def _next(self, tokens: Sequence[int]) -> int:
        self._model.eval(tokens)
        logits = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@contextmanager
def quiet() -> Iterator[None]:
    """Without what llama.cpp prints to the error stream."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
