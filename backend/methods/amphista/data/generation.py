"""Answers of the base itself, many at a time: what a drafter learns best from.

A batch needs neither padding nor masks: rows begin together and have equal positions; while a row
is inside its own prompt its next token is given, behind it the model's choice counts. Rows of
similar length share a batch, so little is wasted, and attention runs without a mask, which is
several times faster with grouped queries.

What a drafter learns from is kept while it is there: the hidden states and the base's first choices
come with the tokens, so the base is not run a second time over what it wrote.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from backend.errors import ComputeError
from backend.methods.amphista.target_model import TargetModel
from backend.reporter import Reporter, stop_if_asked

LOGITS = 2**24  # entries [n, V] computed at once
COMPACT_EVERY = 16  # steps after which finished rows leave the batch


Reading = dict[str, Tensor]  # of one sequence, see `read`


class TokenRecords:
    """What the base made of every token of a batch of rows, written column by column."""

    def __init__(self, target: TargetModel, rows: int, longest: int) -> None:
        place = rows, longest
        self.hidden = torch.zeros(*place, target.width, dtype=torch.bfloat16)
        self.denominator = torch.zeros(place)
        self.best = torch.zeros(place, dtype=torch.int32)

    def add(
        self, active: Sequence[int], start: int, hidden: Tensor, found: tuple[Tensor, Tensor]
    ) -> None:
        """Columns from `start`: hidden states [b, n, d] of the `active` rows, and both of `found`
        [b, n]."""
        columns = slice(start, start + hidden.shape[1])
        rows = torch.tensor(active)
        self.hidden[rows, columns] = hidden.to(torch.bfloat16).cpu()
        self.denominator[rows, columns], self.best[rows, columns] = found

    def of(self, row: int, ids: Sequence[int]) -> Reading:
        """The row of the tokens `ids`."""
        size = len(ids)
        return {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "hidden": self.hidden[row, :size],
            "denominator": self.denominator[row, :size],
            "best": self.best[row, :size],
        }


@torch.inference_mode()
def write_answers(
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    limit: int,
    ends: Collection[int],
    temperature: float,
    seed: int,
    reporter: Reporter,
) -> list[Reading]:
    """Prompt and answer of each prompt; an answer ends behind a token of `ends` or at `limit`.

    Args:
        temperature: 0 takes the most likely token.
        seed: of the draws; the same batch and seed give the same answers.

    Raises:
        ComputeError: nothing can be drawn from the base.
        CancelledError: cancellation was requested.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    goals = [min(len(prompt) + limit, target.context) for prompt in prompts]
    cache, notes = target.new_cache(max(goals)), TokenRecords(target, len(rows), max(goals))
    active, position = list(range(len(rows))), min(map(len, rows))
    given = torch.tensor([row[:position] for row in rows], device=target.device)
    while active:
        stop_if_asked(reporter)
        hidden = target.hidden(given, cache)
        denominator, best, logits = read_out(target, hidden)
        notes.add(active, position - hidden.shape[1], hidden, (denominator, best))
        chosen = _drawn(logits, temperature, generator) if temperature else best[:, -1].tolist()
        for row, token in zip(active, chosen, strict=True):
            if len(rows[row]) == position and not _ended(rows[row], prompts[row], goals[row], ends):
                rows[row].append(token)
        going = [len(rows[row]) > position for row in active]  # its last token is read as well
        if not any(going):
            break
        if position % COMPACT_EVERY == 0 and not all(going):
            places = torch.tensor([n for n, goes in enumerate(going) if goes])
            cache.select(places.to(target.device))
            active = [active[n] for n in places.tolist()]
        column = [_token_at(rows[row], position) for row in active]
        given = torch.tensor(column, device=target.device)[:, None]
        position += 1
    return [notes.of(row, ids) for row, ids in enumerate(rows)]


@torch.inference_mode()
def read(target: TargetModel, ids: Tensor) -> Reading:
    """What is kept of a sequence of token ids [T]: ids; hidden [T, d] bfloat16; denominator [T]
    float32, the log of the softmax's; best [T], the likeliest next token."""
    notes = TokenRecords(target, 1, len(ids))
    hidden = target.hidden(ids[None].to(target.device))
    notes.add([0], 0, hidden, read_out(target, hidden)[:2])
    return notes.of(0, ids.tolist())


def read_out(target: TargetModel, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of hidden states [b, n, d]: log denominators [b, n], likeliest tokens [b, n], and the logits
    [b, V] of the last column; the first two on the CPU."""
    denominators, best = [], []
    for columns in hidden.split(max(1, LOGITS // (target.vocabulary * len(hidden))), dim=1):
        rows = target.logits(columns.flatten(0, 1))  # one product: the head is not copied per row
        logits = rows.float().unflatten(0, columns.shape[:2])
        denominators.append(logits.logsumexp(-1).cpu())
        best.append(logits.argmax(-1).int().cpu())
    return torch.cat(denominators, 1), torch.cat(best, 1), logits[:, -1]


def _token_at(row: Sequence[int], position: int) -> int:
    """The row's token there; behind its end any token does."""
    return row[min(position, len(row) - 1)]


def _ended(row: list[int], prompt: Sequence[int], goal: int, ends: Collection[int]) -> bool:
    return len(row) >= goal or (len(row) > len(prompt) and row[-1] in ends)


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """A token for each row of logits [b, V], drawn on the CPU so that a seed means the same: the
    first whose cumulated probability exceeds a uniform number, one random number a row.

    Raises:
        ComputeError: the logits are not finite.
    """
    cumulated = (logits.cpu().double() / temperature).softmax(-1).cumsum(-1)
    if not cumulated[:, -1].isfinite().all():
        raise ComputeError(
            "The base writes nothing: its logits are not finite.",
            "Its weights overflow in this precision, or are damaged.",
            "Choose another precision, or another base.",
            "precision",
        )
    places = torch.rand(len(logits), 1, dtype=torch.double, generator=generator)
    drawn = torch.searchsorted(cumulated, places * cumulated[:, -1:], right=True)
    return drawn[:, 0].clamp_(max=logits.shape[-1] - 1).tolist()
