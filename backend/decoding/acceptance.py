"""Acceptance of a verified draft tree: the path to keep, and the token that follows it.

The target model gives every node a distribution p. Greedy decoding and sampling share one rule: at
the last node of the path, draw the next token from p (greedy: take the most likely). If a child has
that token, the path continues there; otherwise the token ends the step. Every committed token is
therefore drawn from the target's distribution given its prefix, whatever was drafted: **the
distribution of the text is exactly that of decoding without a tree**.

Temperature, top-k and top-p act on the row of each node. A repetition penalty depends on the text
so far, including the path to the node.
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

TOP_COUNTS = 64, 512  # numbers of most likely tokens tried before sorting all logits
ChooseToken = Callable[[int, list[int]], int]  # node, tokens on its path -> next token


@dataclass(frozen=True)
class Sampling:
    """Sampling settings.

    Attributes:
        temperature: 0 for greedy decoding.
        top_k: number of most likely tokens to sample from; 0 for all.
        top_p: cumulative probability to sample from; 1 for all.
        repetition_penalty: factor for tokens already in the text; 1 for none.

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
        for name, valid in bounds.items():
            if not valid:
                raise ConfigError(
                    "The sampling settings are not valid.",
                    f"{name} is {getattr(self, name)}.",
                    "",
                    name,
                )


class Acceptance:
    """Walks a verified tree with tokens sampled from the target. Exact for any tree."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = Random(sampling.seed)

    def walk(
        self, tree: Tree, tokens: Sequence[int], logits: Tensor, before: Sequence[int]
    ) -> tuple[list[int], int]:
        """Return the accepted nodes, root first, and the token after the last one.

        Args:
            tokens: one token per node.
            logits: [n, V], one row per node.
            before: all tokens committed before the root.
        """
        choose, path = self._chooser(logits, before), [0]
        while True:
            token = choose(path[-1], [tokens[node] for node in path])
            children = tree.children[path[-1]]
            child = next((node for node in children if tokens[node] == token), None)
            if child is None:
                return path, token
            path.append(child)

    def _chooser(self, logits: Tensor, before: Sequence[int]) -> ChooseToken:
        """Return the function that samples the token after a node from `logits` [n, V]."""
        settings = self._sampling
        if settings.repetition_penalty == 1 and not settings.temperature:
            if logits.device.type == "cpu":  # a path visits only a few rows
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
    """Return logits [V] in which the tokens of `text` are penalized (Keskar et al., 2019)."""
    ids = torch.tensor(text, device=scores.device)
    repeated = scores[ids]
    penalized_scores = torch.where(repeated < 0, repeated * penalty, repeated / penalty)
    return scores.index_put((ids,), penalized_scores)


def draw(scores: Tensor, top_k: int, top_p: float, quantile: float) -> int:
    """Sample a token from logits [V].

    Sorting all logits takes a noticeable part of a pass, so the most likely tokens are tried first.
    Without `top_k` and `top_p` the tokens after them need no order.

    Args:
        top_k: number of most likely tokens to sample from; 0 for all.
        top_p: sample from the fewest tokens that reach this cumulative probability.
        quantile: random number in [0, 1); the position in the cumulative probabilities, most likely
            tokens first.

    Raises:
        ComputeError: the logits are not finite.
    """
    threshold = quantile if top_p == 1 else top_p
    for ranks in (top_k,) if top_k else (*TOP_COUNTS, len(scores)):
        ranks = min(ranks, len(scores))
        logprobs, tokens = most_likely(scores[None], ranks)
        cumulative = np.exp(logprobs[0].cpu().double().numpy()).cumsum()
        if not np.isfinite(cumulative[-1]):
            raise ComputeError(
                "The model cannot generate text: its logits are not finite.",
                "Its weights overflow in this precision, or are damaged.",
                "Choose another precision, or another model.",
                "precision",
            )
        if cumulative[-1] > threshold:
            break
        if top_p == 1 and not top_k and ranks == TOP_COUNTS[-1] < len(scores):
            # sample from all tokens except the most likely ones, in the order of the vocabulary
            tail = scores.double().softmax(-1).cpu()
            tail[tokens[0].long().cpu()] = 0
            tail_quantile = quantile - cumulative[-1]
            token = int(torch.searchsorted(tail.cumsum(-1), tail_quantile, right=True))
            return token if token < len(tail) else int(tail.argmax())
    total = cumulative[-1] if top_k or ranks == len(scores) else 1.0
    if top_p < 1:  # includes the token that reaches `top_p`
        last = int(np.searchsorted(cumulative, top_p * total))
        total = cumulative[min(last, len(cumulative) - 1)]
    rank = int(np.searchsorted(cumulative, quantile * total, side="right"))
    return int(tokens[0, min(rank, len(cumulative) - 1)])


def most_likely(logits: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and token ids [n, ranks] of the largest logits of each row [n,
    V]."""
    if logits.device.type == "cpu" and ranks <= TOP_COUNTS[-1] and kernels_or_none():
        return top_k(logits, ranks)
    best = logits.float().log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    return best.values[:, :ranks], best.indices[:, :ranks]


def top_k(logits: Tensor, ranks: int, instructions: Kernels | None = None) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [n, ranks] float32, descending, and indices [n, ranks] int32 of
    the largest entries of each row of `logits` [n, v]. Among equal entries the first index comes
    first. If fewer entries are finite, the rest have index 0 and a log-probability of -inf or NaN.

    Native code, because torch sorts whole rows, which takes longer than a layer of a drafter.

    Raises:
        CompilerError: the decoder cannot be built on this machine.
        ValueError: `logits` is not a matrix, or `ranks` is below 1.
    """
    if logits.dim() != 2 or ranks < 1:
        raise ValueError(f"Cannot take the top {ranks} of logits of shape {[*logits.shape]}")
    rows, columns = logits.shape
    source = logits.float().contiguous()
    values = torch.empty(rows, ranks, dtype=torch.float32)
    indices, sums = torch.empty(rows, ranks, dtype=torch.int32), torch.empty(rows, 1)
    outputs = [x.data_ptr() for x in (values, indices, sums)]
    (instructions or kernels()).top_k(source.data_ptr(), rows, columns, ranks, *outputs)
    return values - sums, indices
