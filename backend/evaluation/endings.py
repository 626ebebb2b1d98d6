"""Multiple choice made from the evaluation text: which of four endings continues a passage?

The windows are cut into parts of `PART` tokens. Each part is a question: a passage, its first
`PASSAGE` tokens, and four endings of `ENDING` tokens, its own and those of the next three parts of
the text. The model chooses the ending it finds most likely; all are equally long, so nothing need
be normalised:

    choice = argmax_k sum_t log p(e_kt | passage, e_k1 ... e_k(t-1))

Accuracy is the share of questions answered with their own ending; guessing gives 25 %. Endings of
the same article share names and subject, which word frequencies alone do not tell apart. (Ours: it
needs no data but the text; its figures compare models on one text, with nothing published.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.evaluation.question_shape import CHOICES, PART, PASSAGE, question_count
from backend.models.block_forward import each_logits
from backend.models.hidden_states import NewBatches
from backend.reporter import Reporter, stop_if_asked


@dataclass(frozen=True)
class EndingScore:
    """Answers to questions of the same kind.

    Attributes:
        right: whether each question was answered with its own ending.
    """

    right: tuple[bool, ...]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def stderr(self) -> float | None:
        """Of the accuracy, over questions; None for a single one."""
        n = len(self.right)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (n - 1)) if n > 1 else None


def questions(input_ids: Tensor, limit: int = 0) -> Tensor:
    """Passages with each of their endings, the own one first: [questions, CHOICES, PART].

    The first questions are the first of every window, so that a few of them cover the text.

    Args:
        input_ids: windows [n, L] of at least CHOICES parts together.
        limit: number of questions; 0: all.
    """
    n, each = len(input_ids), input_ids.shape[1] // PART
    parts = input_ids[:, : each * PART].reshape(n * each, PART)
    endings = torch.stack([parts.roll(-k, 0)[:, PASSAGE:] for k in range(CHOICES)], 1)
    passages = parts[:, None, :PASSAGE].expand(-1, CHOICES, -1)
    order = torch.arange(n * each).view(n, each).T.flatten()
    return torch.cat([passages, endings], 2)[order[: question_count(n, each * PART, limit)]]


@torch.no_grad()
def score_endings(
    model: PreTrainedModel,
    asked: Tensor,
    batch: int,
    reporter: Reporter,
    new: NewBatches = list,
) -> EndingScore:
    """The answers of `model`, which should be in eval mode, to `questions`.

    Args:
        batch: questions in one forward pass.
        new: creates the container for the hidden states of a streamed model.

    Raises:
        CancelledError: cancellation was requested.
    """

    def tick(share: float) -> None:
        stop_if_asked(reporter)
        reporter.progress(len(asked) * share, len(asked), "Choosing endings")

    rows = asked.flatten(0, 1)
    passes = each_logits(model, rows, batch * CHOICES, new, tick)
    likelihoods = torch.cat(list(_likelihoods(passes, rows, batch * CHOICES)))
    best = likelihoods.view(-1, CHOICES).argmax(1)
    return EndingScore(tuple((best == 0).tolist()))


def _likelihoods(passes: Iterator[Tensor], rows: Tensor, batch: int) -> Iterator[Tensor]:
    """Of each batch, log p of the endings: [b] float64 on the CPU."""
    for part, logits in zip(rows.split(batch), passes, strict=True):
        chances = logits[:, PASSAGE - 1 : -1].float().log_softmax(-1)
        ending = part[:, PASSAGE:].to(logits.device)
        yield chances.gather(-1, ending.unsqueeze(-1)).squeeze(-1).double().sum(1).cpu()
