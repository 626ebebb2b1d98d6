"""Answers of the base itself, many at a time: what a drafter learns best from.

A batch needs neither padding nor masks: rows begin together and have equal positions; while a row
is inside its own prompt its next token is given, behind it the model's choice counts. Rows of
similar length share a batch, so little is wasted, and attention runs without a mask, which is
several times faster with grouped queries.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from backend.methods.amphista.target import Target
from backend.reporter import Reporter, stop_if_asked

COMPACT_EVERY = 16  # steps after which finished rows leave the batch


@torch.inference_mode()
def write_answers(
    target: Target,
    prompts: Sequence[Sequence[int]],
    limit: int,
    ends: Collection[int],
    temperature: float,
    seed: int,
    reporter: Reporter,
) -> list[list[int]]:
    """Prompt and answer of each prompt; an answer ends behind a token of `ends` or at `limit`.

    Args:
        temperature: 0 takes the most likely token.
        seed: of the draws; the same batch and seed give the same answers.

    Raises:
        Stopped: the reporter asked for it.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    goals = [min(len(prompt) + limit, target.context) for prompt in prompts]
    cache = target.new_cache(max(goals))
    active, position = list(range(len(rows))), min(map(len, rows))
    given = torch.tensor([row[:position] for row in rows], device=target.device)
    while active:
        stop_if_asked(reporter)
        chosen = _choose(target, target.hidden(given, cache)[:, -1], temperature, generator)
        for row, token in zip(active, chosen, strict=True):
            if len(rows[row]) == position and not _ended(rows[row], prompts[row], goals[row], ends):
                rows[row].append(token)
        position += 1
        going = [not _ended(rows[row], prompts[row], goals[row], ends) for row in active]
        if not any(going):
            break
        if position % COMPACT_EVERY == 0 and not all(going):
            places = torch.tensor([n for n, goes in enumerate(going) if goes])
            cache.select(places.to(target.device))
            active = [active[n] for n in places.tolist()]
        column = [_token_at(rows[row], position - 1) for row in active]
        given = torch.tensor(column, device=target.device)[:, None]
    return rows


def _token_at(row: Sequence[int], position: int) -> int:
    """The row's token there; behind its end any token does."""
    return row[position] if position < len(row) else row[-1]


def _ended(row: list[int], prompt: Sequence[int], goal: int, ends: Collection[int]) -> bool:
    return len(row) >= goal or (len(row) > len(prompt) and row[-1] in ends)


def _choose(
    target: Target, hidden: Tensor, temperature: float, generator: torch.Generator
) -> list[int]:
    """The next token of every row [b, d], drawn on the CPU so that a seed means the same."""
    logits = target.logits(hidden)
    if temperature == 0:
        best: list[int] = logits.argmax(-1).tolist()
        return best
    chances = (logits.float().cpu() / temperature).softmax(-1)
    drawn: list[int] = torch.multinomial(chances, 1, generator=generator)[:, 0].tolist()
    return drawn
