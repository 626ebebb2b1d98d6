"""Multiple choice made from the evaluation text: which of four endings continues a passage?

A question is a part of `PART` tokens of a window: a passage, its first `PASSAGE` tokens, and four
endings of `ENDING` tokens, its own and those of the next three parts of the window:

    choice = argmax_k sum_t log p(e_kt | passage, e_k1 ... e_k(t-1))

Accuracy is the share of questions answered with their own ending, which has to be likelier than
each other one; guessing gives 25 %. (Ours: figures compare models on one text.)"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.calibration.heldout import token_nll, windows_at_once
from backend.evaluation.native_text import TextModel, passes
from backend.evaluation.tasks import CHOICES, ENDING, PART, PASSAGE, parts_of
from backend.models.block_forward import NewBatches
from backend.reporter import Reporter, stop_if_asked
from backend.text.slices import TextSlice


@dataclass(frozen=True)
class EndingScore:
    """Answers to questions of the same kind."""

    right: tuple[bool, ...]  # whether each question was answered with its own ending

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def stderr(self) -> float | None:
        """Of the accuracy, over questions; None for a single one."""
        n = len(self.right)
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (n - 1)) if n > 1 else None


def questions(text: TextSlice, limit: int = 0) -> Tensor:
    """Passages with each of their endings, the own one first: [questions, CHOICES, L].

    L is `PART`, or one more where the text has a beginning-of-text token, which then begins every
    row. The first questions are the first of every window, so that a few of them cover the text.
    `text`: of windows that hold at least CHOICES parts. `limit`: number of questions; 0: all."""
    ids, each = text.input_ids, parts_of(text.context)
    parts = ids[:, text.bos :][:, : each * PART].reshape(len(ids), each, PART)
    endings = torch.stack([parts.roll(-k, 1)[..., PASSAGE:] for k in range(CHOICES)], 2)
    passages = parts[:, :, None, :PASSAGE].expand(-1, -1, CHOICES, -1)
    begin = ids[:, None, None, : int(text.bos)].expand(-1, each, CHOICES, -1)
    rows = torch.cat([begin, passages, endings], 3).transpose(0, 1).flatten(0, 1)
    return rows[:limit] if limit else rows


@torch.no_grad()
def score_endings(
    model: TextModel, asked: Tensor, batch: int, reporter: Reporter, new: NewBatches = list
) -> EndingScore:
    """The answers of `model`, which should be in eval mode, to `questions`.

    A streamed model reads its blocks once for every CHOICES-th part of the questions, so that no
    more hidden states wait than those of the text itself. `batch`: questions in one forward pass,
    or fewer where their logits would exceed `MAX_LOGITS`. `new`: creates the container for the
    hidden states of a streamed model. Raises CancelledError: cancellation was requested."""
    batch = windows_at_once(model.config, asked[0].numel(), batch)
    right: list[bool] = []
    for some in asked.split(-(-len(asked) // CHOICES)):

        def tick(share: float, done: int = len(right), more: int = len(some)) -> None:
            stop_if_asked(reporter)
            reporter.progress(done + more * share, len(asked), "Choosing endings")

        rows = some.flatten(0, 1)
        found = []  # log p of each ending, float64
        for part, logits in passes(model, rows, batch * CHOICES, new, tick):
            windows = zip(logits[:, -ENDING - 1 :], part[:, -ENDING - 1 :], strict=True)
            found += [-token_nll(*row).double().sum().cpu() for row in windows]
        chosen = torch.stack(found).view(-1, CHOICES)
        right += (chosen[:, :1] > chosen[:, 1:]).all(1).tolist()
    return EndingScore(tuple(right))
