"""Batched generation of responses by the target model: the best training data for a drafter.

A batch needs neither padding nor masks: all rows start together and share positions; inside its own
prompt a row is fed the prompt, after it the generated tokens. Rows of similar length share a batch,
so little is wasted, and attention runs without a mask, which is several times faster with grouped
queries.

Hidden states and most likely tokens are recorded during generation, so the target model is not run
over its own output again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from backend.errors import ComputeError
from backend.methods.amphista.target_model import TargetModel
from backend.models.kv_cache import PreallocatedCache
from backend.reporter import Reporter, stop_if_asked

LOGITS = 2**24  # entries [n, V] in memory at once
COMPACT_EVERY = 16  # steps after which finished rows leave the batch


Reading = dict[str, Tensor]  # of one sequence, see `read`


class TokenRecords:
    """States and predictions for every token of a batch, filled column by column."""

    def __init__(self, target: TargetModel, rows: int, longest: int) -> None:
        place = rows, longest
        self.hidden = torch.zeros(*place, target.width, dtype=torch.bfloat16)
        self.denominator = torch.zeros(place)
        self.best = torch.zeros(place, dtype=torch.int32)

    def add(
        self, active: Sequence[int], start: int, hidden: Tensor, read_out: tuple[Tensor, Tensor]
    ) -> None:
        """Fill columns from `start`: hidden states [b, n, d] of the `active` rows, and log
        denominators and most likely tokens [b, n]."""
        columns = slice(start, start + hidden.shape[1])
        rows = torch.tensor(active)
        self.hidden[rows, columns] = hidden.to(torch.bfloat16).cpu()
        self.denominator[rows, columns], self.best[rows, columns] = read_out

    def row(self, number: int, ids: Sequence[int]) -> Reading:
        """The records of one row with the tokens `ids`."""
        size = len(ids)
        return {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "hidden": self.hidden[number, :size],
            "denominator": self.denominator[number, :size],
            "best": self.best[number, :size],
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
    """Generate a response to each prompt, until a token of `ends` or `limit` tokens.

    Args:
        temperature: 0: greedy.
        seed: of the sampling; the same batch and seed give the same responses.

    Raises:
        ComputeError: the logits of the target model are not finite.
        CancelledError: cancellation was requested.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    goals = [min(len(prompt) + limit, target.context) for prompt in prompts]
    cache = PreallocatedCache(target.layers, max(goals))
    records = TokenRecords(target, len(rows), max(goals))
    active, position = list(range(len(rows))), min(map(len, rows))
    given = torch.tensor([row[:position] for row in rows], device=target.device)
    while active:
        stop_if_asked(reporter)
        hidden = target.hidden(given, cache)
        denominator, best, logits = read_out(target, hidden)
        records.add(active, position - hidden.shape[1], hidden, (denominator, best))
        chosen = _sample(logits, temperature, generator) if temperature else best[:, -1].tolist()
        for row, token in zip(active, chosen, strict=True):
            if len(rows[row]) == position and not _ended(rows[row], prompts[row], goals[row], ends):
                rows[row].append(token)
        going = [len(rows[row]) > position for row in active]  # its last token is run as well
        if not any(going):
            break
        if position % COMPACT_EVERY == 0 and not all(going):
            places = torch.tensor([n for n, goes in enumerate(going) if goes])
            cache.select(places.to(target.device))
            active = [active[n] for n in places.tolist()]
        column = [_token_at(rows[row], position) for row in active]
        given = torch.tensor(column, device=target.device)[:, None]
        position += 1
    return [records.row(row, ids) for row, ids in enumerate(rows)]


@torch.inference_mode()
def read(target: TargetModel, ids: Tensor) -> Reading:
    """Run a sequence of token ids [T] and record ids; hidden [T, d] bfloat16; denominator [T]
    float32, the log of the softmax denominator; best [T], the most likely next token."""
    records = TokenRecords(target, 1, len(ids))
    hidden = target.hidden(ids[None].to(target.device))
    records.add([0], 0, hidden, read_out(target, hidden)[:2])
    return records.row(0, ids.tolist())


def read_out(target: TargetModel, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log denominators [b, n] and most likely tokens [b, n] of hidden states [b, n, d], both on the
    CPU, and the logits [b, V] of the last column."""
    denominators, best = [], []
    for columns in hidden.split(max(1, LOGITS // (target.vocabulary * len(hidden))), dim=1):
        rows = target.logits(
            columns.flatten(0, 1)
        )  # one product: the head is not copied for each row
        logits = rows.float().unflatten(0, columns.shape[:2])
        denominators.append(logits.logsumexp(-1).cpu())
        best.append(logits.argmax(-1).int().cpu())
    return torch.cat(denominators, 1), torch.cat(best, 1), logits[:, -1]


def _token_at(row: Sequence[int], position: int) -> int:
    """The token of the row at `position`; after its end any token will do."""
    return row[min(position, len(row) - 1)]


def _ended(row: list[int], prompt: Sequence[int], goal: int, ends: Collection[int]) -> bool:
    return len(row) >= goal or (len(row) > len(prompt) and row[-1] in ends)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """Sample a token per row of logits [b, V], on the CPU so that a seed is reproducible: the first
    whose cumulative probability exceeds a uniform random number.

    Raises:
        ComputeError: the logits are not finite.
    """
    cumulated = (logits.cpu().double() / temperature).softmax(-1).cumsum(-1)
    if not cumulated[:, -1].isfinite().all():
        raise ComputeError(
            "The model cannot generate text: its logits are not finite.",
            "Its weights overflow in this precision, or are damaged.",
            "Choose another precision, or another model.",
            "precision",
        )
    places = torch.rand(len(logits), 1, dtype=torch.double, generator=generator)
    drawn = torch.searchsorted(cumulated, places * cumulated[:, -1:], right=True)
    return drawn[:, 0].clamp_(max=logits.shape[-1] - 1).tolist()
