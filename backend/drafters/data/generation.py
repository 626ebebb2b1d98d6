"""Batched generation of responses by the target model. A batch needs neither padding nor masks: all
rows start together and share positions; inside its own prompt a row is fed the prompt, after it the
generated tokens. Hidden states and most likely tokens are recorded on the way."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from backend.decoding.batch import new_batch, read_out
from backend.decoding.target_model import TargetModel
from backend.errors import ComputeError
from backend.reporter import Reporter, stop_if_asked

COMPACT_EVERY = 16  # steps after which finished rows leave the batch


Reading = dict[str, Tensor]  # of one sequence, see `read`


class TokenRecords:
    """States and predictions for every token of a batch, filled column by column."""

    def __init__(self, target: TargetModel, rows: int, longest: int) -> None:
        place = rows, longest
        self.hidden = torch.zeros(*place, target.width, dtype=torch.bfloat16)
        self.denominator = torch.zeros(place)
        self.best = torch.zeros(place, dtype=torch.int32)

    def add(self, rows: Sequence[int], start: int, hidden: Tensor, logits: Tensor) -> int:
        """Fill columns from `start` with hidden states [b, n, d] and logits [b, n, V] of `rows`;
        the column after them."""
        end = start + hidden.shape[1]
        place = torch.tensor(rows), slice(start, end)
        self.hidden[place] = hidden.to(torch.bfloat16).cpu()
        self.denominator[place] = logits.logsumexp(-1).cpu()
        self.best[place] = logits.argmax(-1).int().cpu()
        return end

    def row(self, number: int, ids: Sequence[int]) -> Reading:
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
    """A response to each prompt, up to a token of `ends` or `limit` tokens; temperature 0: greedy.
    The same batch and seed give the same responses.

    Raises:
        ComputeError: the logits of the target model are not finite.
        CancelledError: cancellation was requested.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    goals = [min(len(prompt) + limit, target.context) for prompt in prompts]
    active, position = list(range(len(rows))), min(map(len, rows))
    batch = new_batch(target, len(rows), max(goals))
    records = TokenRecords(target, len(rows), max(goals))
    given, column = torch.tensor([row[:position] for row in rows]), 0
    while active:
        stop_if_asked(reporter)
        for hidden, logits in batch.append(given):
            column = records.add(active, column, hidden, logits)
        best = records.best[active, column - 1].tolist()
        chosen = _sample(logits[:, -1], temperature, generator) if temperature else best
        for row, token in zip(active, chosen, strict=True):
            if len(rows[row]) == position and not _ended(rows[row], prompts[row], goals[row], ends):
                rows[row].append(token)
        going = [len(rows[row]) > position for row in active]  # its last token is run as well
        if not any(going):
            break
        if position % COMPACT_EVERY == 0 and not all(going):
            places = [n for n, goes in enumerate(going) if goes]
            batch.select(places)
            active = [active[n] for n in places]
        # behind the end of a row any token will do
        given = torch.tensor([[rows[row][min(position, len(rows[row]) - 1)]] for row in active])
        position += 1
    return [records.row(row, ids) for row, ids in enumerate(rows)]


@torch.inference_mode()
def read(target: TargetModel, ids: Tensor) -> Reading:
    """Run a sequence of token ids [T] and record ids; hidden [T, d] bfloat16; denominator [T]
    float32, the log of the softmax denominator; best [T], the most likely next token."""
    records, column = TokenRecords(target, 1, len(ids)), 0
    for hidden, logits in read_out(target, target.hidden(ids[None].to(target.device))):
        column = records.add([0], column, hidden, logits)
    return records.row(0, ids.tolist())


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
