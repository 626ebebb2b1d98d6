"""Acceptance: which path of a verified tree is kept, and the token that follows it.

The target model gives every node a distribution p. Greedy decoding and sampling share one rule: at
the last node of the path draw the next token from p (greedy: take the most likely). If a child has
that token, the path continues there; otherwise the token ends the step. Every committed token is
therefore drawn from the target's own distribution given its own prefix, whatever was drafted: **the
distribution of the text is exactly that of decoding without a tree**.

Temperature, top-k and top-p act on the row of each node. A repetition penalty depends on the text
so far, so it gets the prefix of each node, including the path to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from backend.decoding.draft_tree import Tree
from backend.decoding.limits import MIN_PENALTY, MIN_TEMPERATURE
from backend.errors import ConfigError

Choose = Callable[[int, list[int]], int]  # node, tokens on the path to it -> the next token


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; 0, 0, 1.0 and 1.0 leave the distribution alone, a temperature of 0 is
    greedy.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "temperature": self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= 100,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "repetition_penalty": self.repetition_penalty >= MIN_PENALTY,
        }
        for name, fits in bounds.items():
            if not fits:
                why = f"{name} is {getattr(self, name)}."
                raise ConfigError("The sampling settings are not valid.", why, "", name)

    def processors(self) -> LogitsProcessorList:
        """The logits processors, in the order of `generate` in transformers."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0, 1):
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature and self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        return chosen


class Acceptance:
    """Sample from the target, continue where a child has that token: exact for any tree."""

    def __init__(self, sampling: Sampling) -> None:
        self._greedy = sampling.temperature == 0
        self._processors = sampling.processors()
        self._generator = torch.Generator().manual_seed(sampling.seed)  # on the CPU: reproducible

    def walk(
        self, tree: Tree, tokens: Sequence[int], logits: Tensor, before: Sequence[int]
    ) -> tuple[list[int], int]:
        """The accepted nodes, the root first, and the token after the last. `tokens`: one per node;
        `logits`: [n, V]; `before`: all tokens committed before the root."""
        choose, path = self._chooser(logits, before), [0]
        while True:
            token = choose(path[-1], [tokens[node] for node in path])
            children = tree.children[path[-1]]
            child = next((node for node in children if tokens[node] == token), None)
            if child is None:
                return path, token
            path.append(child)

    def _chooser(self, logits: Tensor, before: Sequence[int]) -> Choose:
        """The function that samples the token after a node of `logits` [n, V]."""
        if self._greedy and not self._processors:
            if logits.device.type == "cpu":  # a path reads few rows of a tree
                return lambda node, path: int(logits[node].float().argmax())
            best = logits.argmax(-1).tolist()  # one transfer for the whole tree
            return lambda node, path: best[node]

        def choose(node: int, path: list[int]) -> int:
            scores = self._processed(logits[node], [*before, *path])
            if self._greedy:
                return int(scores.argmax())
            chances = scores.softmax(-1).cpu()
            return int(torch.multinomial(chances, 1, generator=self._generator))

        return choose

    def _processed(self, row: Tensor, prefix: list[int]) -> Tensor:
        scores = row.float()[None]
        if self._processors:
            ids = torch.tensor([prefix], device=row.device)
            scores = self._processors(ids, scores)  # type: ignore[arg-type]
        return scores[0]
