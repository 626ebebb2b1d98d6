"""Decoders a user would run instead, timed on the same prompts: transformers, and llama.cpp. That
is optional and should be built for this processor (CMAKE_ARGS=-DGGML_NATIVE=ON)."""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from backend.decoding.cost_model import LapTimer
from backend.decoding.draft_tree import NO_TREE, NoDraft, Proposer
from backend.decoding.serving.request import PARTS, DecodeStep
from backend.models.kv_cache import greedy


class PlainDecoder(ABC):
    """Another program, which decodes greedily and drafts nothing."""

    device = torch.device("cpu")
    proposer: Proposer = NoDraft()

    @abstractmethod
    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """The tokens after a prompt, without end."""

    def decode(
        self, prompt: Sequence[int], limit: int, ends: Collection[int]
    ) -> Iterator[DecodeStep]:
        """Generate up to `limit` tokens after `prompt`; stop after a token of `ends`."""
        clock, path = LapTimer(self.device), list[int]()
        for token in islice(self.tokens(prompt), limit):
            seconds = dict.fromkeys(PARTS, 0.0) | {"verify": clock.lap()}
            yield DecodeStep([token], [0], path, NO_TREE, [token], seconds)
            if token in ends:
                return
            path = [0]
            clock.lap()


class TransformersDecoder(PlainDecoder):
    """A model's own forward pass and cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.device, self._model = model.device, model

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        return greedy(self._model, prompt)


class LlamaCppDecoder(PlainDecoder):
    """A GGUF file decoded by llama.cpp, with room for the longest prompt and its response."""

    def __init__(self, file: Path, capacity: int) -> None:
        import llama_cpp

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

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self._model.reset()
        token = self._next(prompt)
        while True:
            yield token
            token = self._next([token])

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
