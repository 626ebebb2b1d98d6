"""Acceptance: which path of a verified tree is kept, and the token that follows it.

The target model gives every node a distribution p. Greedy decoding and sampling share one rule: at
the last node of the path draw the next token from p (greedy: take the most likely). If a child has
that token, the path continues there; otherwise the token ends the step. Every committed token is
therefore drawn from the target's own distribution given its own prefix, whatever was drafted: **the
distribution of the text is exactly that of decoding without a tree**.

Temperature, top-k and top-p act on the row of each node. A repetition penalty depends on the text
so far, so it gets the prefix of each node, including the path to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from backend.decoding.draft_tree import Tree
from backend.decoding.limits import MIN_PENALTY, MIN_TEMPERATURE
from backend.errors import ComputeError, ConfigError
from backend.kernels.library import Kernels, kernels, kernels_or_none

RANKS = 64, 512  # most likely tokens that are looked at first, and next
Choose = Callable[[int, list[int]], int]  # node, tokens on the path to it -> the next token


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; 0, 0, 1.0 and 1.0 leave the distribution alone, a temperature of 0 is
    greedy. Raises ConfigError: a value is out of range."""

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
                raise ConfigError(
                    "The sampling settings are not valid.",
                    f"{name} is {getattr(self, name)}.",
                    "",
                    name,
                )


class Acceptance:
    """Sample from the target, continue where a child has that token: exact for any tree."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = Random(sampling.seed)

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
        settings = self._sampling
        if settings.repetition_penalty == 1 and not settings.temperature:
            if logits.device.type == "cpu":  # a path reads few rows of a tree
                return lambda node, path: int(logits[node].float().argmax())
            best = logits.argmax(-1).tolist()  # one transfer for the whole tree
            return lambda node, path: best[node]

        def choose(node: int, path: list[int]) -> int:
            scores = logits[node].float()
            if settings.repetition_penalty != 1:
                scores = penalized(scores, [*before, *path], settings.repetition_penalty)
            if not settings.temperature:
                return int(scores.argmax())
            scores = scores / settings.temperature
            return draw(scores, settings.top_k, settings.top_p, self._random.random())

        return choose


def penalized(scores: Tensor, text: Sequence[int], penalty: float) -> Tensor:
    """Logits [V] with those of the tokens of `text` made smaller (Keskar et al., 2019)."""
    ids = torch.tensor(text, device=scores.device)
    found = scores[ids]
    return scores.index_put((ids,), torch.where(found < 0, found * penalty, found / penalty))


def draw(scores: Tensor, top_k: int, top_p: float, place: float) -> int:
    """The token of logits [V] at `place`, from 0 to 1, of the cumulated probabilities, the most
    likely first; of the `top_k` most likely (0: all), and of the fewest that reach `top_p`.

    Sorting all logits takes as long as a part of a pass, so the most likely are tried first. Where
    only the place counts, those after them need no order. Raises ComputeError: the logits are not
    finite."""
    wanted = place if top_p == 1 else top_p
    for ranks in (top_k,) if top_k else (*RANKS, len(scores)):
        ranks = min(ranks, len(scores))
        chances, tokens = most_likely(scores[None], ranks)
        cumulated = np.exp(chances[0].cpu().double().numpy()).cumsum()
        if not np.isfinite(cumulated[-1]):
            raise ComputeError(
                "The model cannot generate text: its logits are not finite.",
                "Its weights overflow in this precision, or are damaged.",
                "Choose another precision, or another model.",
                "precision",
            )
        if cumulated[-1] > wanted:
            break
        if top_p == 1 and not top_k and ranks == RANKS[-1] < len(scores):
            # the token at `place` of the cumulated probabilities of all but the given, in their
            # order
            chances = scores.double().softmax(-1).cpu()
            chances[tokens[0].long().cpu()] = 0
            found = int(torch.searchsorted(chances.cumsum(-1), place - cumulated[-1], right=True))
            return found if found < len(chances) else int(chances.argmax())
    total = cumulated[-1] if top_k or ranks == len(scores) else 1.0
    if top_p < 1:  # the first that reaches it is the last
        last = int(np.searchsorted(cumulated, top_p * total))
        total = cumulated[min(last, len(cumulated) - 1)]
    found = int(np.searchsorted(cumulated, place * total, side="right"))
    return int(tokens[0, min(found, len(cumulated) - 1)])


def most_likely(logits: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and places [n, ranks] of the largest logits of each row [n, V]."""
    if logits.device.type == "cpu" and ranks <= RANKS[-1] and kernels_or_none():
        return top_k(logits, ranks)
    best = logits.float().log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    return best.values[:, :ranks], best.indices[:, :ranks]


def top_k(logits: Tensor, ranks: int, instructions: Kernels | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n, ranks] float32, descending, and places [n, ranks] int32 of the largest
    of each row of `logits` [n, v], the first place of equal ones first. Where fewer are finite, the
    rest are at place 0 with the log-probability -inf, or NaN.

    Torch sorts every row for it, which takes longer than a layer of a drafter. Raises
    CompilerError: the decoder cannot be built here. ValueError: the logits are no rows, or no rank
    is asked for."""
    if logits.dim() != 2 or ranks < 1:
        raise ValueError(f"{ranks} ranks cannot be taken of logits {[*logits.shape]}")
    rows, columns = logits.shape
    held = logits.float().contiguous()
    values = torch.empty(rows, ranks, dtype=torch.float32)
    places, sums = torch.empty(rows, ranks, dtype=torch.int32), torch.empty(rows, 1)
    found = [x.data_ptr() for x in (values, places, sums)]
    (instructions or kernels()).top_k(held.data_ptr(), rows, columns, ranks, *found)
    return values - sums, places
