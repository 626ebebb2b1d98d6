"""Serving engines of small models, and helpers for their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from backend.decoding.acceptance import Sampling
from backend.decoding.draft_tree import NoDraft
from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.loop import decode
from backend.decoding.serving.request import Event, Finished, GenerationRequest, NewPieces, Piece
from backend.decoding.serving.sequence import ServedSequence
from backend.decoding.target_model import TargetModel
from backend.models.blocks import block_linears
from backend.models.loading import load
from backend.quantization.grid import QuantizedWeight, minmax_grid
from backend.quantization.packed_linear import pack_model
from tests.decoding.native.test_decoder import FAMILIES, SIZES, built

MODELS: dict[str, PretrainedConfig] = {
    "windows": FAMILIES["gemma3"],
    "4 bits": LlamaConfig(**SIZES | {"intermediate_size": 128}),
    "PyTorch": GPT2Config(vocab_size=203, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "windows in PyTorch": FAMILIES["gemma3"],
}
WAIT_S = 20.0


@lru_cache
def target_of(name: str) -> TargetModel:
    """Return the built-in toy in bfloat16, or one of `MODELS` with random weights."""
    if name == "toy":
        return TargetModel(load("toy", dtype=torch.bfloat16).model)
    with torch.inference_mode():
        model = built(MODELS[name])
        if name == "4 bits":
            pack_model(
                model,
                {
                    x.name: packed(x.read())
                    for n in range(3)
                    for x in block_linears(model, n).values()
                },
            )
        return TargetModel(model.float() if "PyTorch" in name else model)


def packed(weight: Tensor) -> QuantizedWeight:
    grid = minmax_grid(weight.view(len(weight), -1, 32), 4, "symmetric")
    return QuantizedWeight(grid, grid.codes(weight).byte())


class Answer:
    """Events of one request."""

    def __init__(self) -> None:
        self.ticket: ServedSequence
        self.events = list[Event]()
        self._ended = threading.Event()

    def deliver(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self._ended.set()

    def wait(self) -> Answer:
        assert self._ended.wait(WAIT_S)
        return self

    @property
    def pieces(self) -> list[Piece]:
        return [p for event in self.events if isinstance(event, NewPieces) for p in event.pieces]

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces]

    @property
    def end(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        assert sum(isinstance(event, Finished) for event in self.events) == 1
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces) + self.end.rest


def ask(
    engine: ServingEngine, prompt: Sequence[int], max_tokens: int = 8, **more: object
) -> Answer:
    """Submit a request and return its pending answer."""
    answer = Answer()
    request = GenerationRequest(tuple(prompt), max_tokens, **more)  # type: ignore[arg-type]
    answer.ticket = engine.submit(request, answer.deliver)
    return answer


def alone(
    target: TargetModel, prompt: Sequence[int], limit: int, sampling: Sampling | None = None
) -> list[int]:
    """Generate the answer in a batch of one, without drafts."""
    steps = decode(target, NoDraft(), prompt, limit, sampling=sampling)
    return [token for step in steps for token in step.tokens]


def prompt_of(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 203, (length,), generator=torch.manual_seed(seed)).tolist())


@pytest.fixture
def opened() -> Iterator[Callable[..., ServingEngine]]:
    """Return a function that opens an engine with memory for `blocks` blocks."""
    engines = list[ServingEngine]()

    def open_one(name: str = "toy", blocks: int = 4000) -> ServingEngine:
        target = target_of(name)
        memory = blocks * target.block_size
        engine = ServingEngine(target, load("toy").tokenizer, memory=memory, threads=lambda: 1)
        engines.append(engine)
        return engine

    yield open_one
    for engine in engines:
        engine.close()
