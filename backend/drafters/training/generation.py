"""Responses of the target model, written by the engine that serves many at once, and texts that it
reads: hidden states and most likely tokens are recorded on the way.
"""

import sys
from collections.abc import Collection, Sequence
from contextlib import closing
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor
from torch.nn.functional import pad

from backend.decoding.acceptance import Sampling
from backend.decoding.serving.engine import ServingEngine
from backend.decoding.serving.request import Event, Finished, GenerationRequest, NewPieces
from backend.decoding.target_model import TargetModel
from backend.reporter import Reporter, stop_if_asked

SEED_STEP = 1_000_003  # a batch has fewer sequences
LOGITS = 2**24  # entries [n, V] in memory at once


Reading = dict[str, Tensor]  # of one sequence, see `read`


class TokenRecord:
    """States and predictions for the tokens `ids` of one sequence, as far as they were read."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids, self._parts = [*ids], list[tuple[Tensor, Tensor, Tensor]]()

    def add(self, start: int, hidden: Tensor, logits: Tensor) -> None:
        """Hidden states [n, d] and logits [n, V] of the tokens from `start` on."""
        if not start:
            self._parts.clear()  # it begins again
        logits = logits.float()
        self._parts.append((hidden.bfloat16(), logits.logsumexp(-1), logits.argmax(-1).int()))

    def reading(self) -> Reading:
        parts = zip(*self._parts, strict=True)
        hidden, denominator, best = (torch.cat(part).cpu() for part in parts)
        unread = len(self.ids) - len(best)
        return {
            "ids": torch.tensor(self.ids, dtype=torch.int32),
            "hidden": pad(hidden, (0, 0, 0, unread)),
            "denominator": pad(denominator, (0, unread)),
            "best": pad(best, (0, unread)),
        }


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
    The same prompts and seed give the same responses. The last token of a response is not read:
    there all but its id is 0. Raises ComputeError: the logits of the target model are not finite;
    CancelledError: cancellation was requested."""
    records, ended = [*map(TokenRecord, prompts)], SimpleQueue[Finished]()

    def observe(record: TokenRecord, start: int, hidden: Tensor, logits: Tensor) -> None:
        stop_if_asked(reporter)  # an error ends the sequence
        record.add(start, hidden, logits)

    def deliver(record: TokenRecord, event: Event) -> None:
        if isinstance(event, NewPieces):
            record.ids += [piece.token for piece in event.pieces]
        elif isinstance(event, Finished):
            ended.put(event)

    engine = ServingEngine(target, None, memory=sys.maxsize, threads=torch.get_num_threads)
    with closing(engine):
        with engine.together():
            for number, (prompt, record) in enumerate(zip(prompts, records, strict=True)):
                request = GenerationRequest(
                    tuple(prompt), min(limit, target.context - len(prompt)),
                    Sampling(temperature, seed=SEED_STEP * seed + number), frozenset(ends),
                    person=str(number), observe=partial(observe, record),
                )  # fmt: skip
                engine.submit(request, partial(deliver, record))
        for _ in prompts:
            if error := ended.get().error:
                stop_if_asked(reporter)
                raise error
    return [record.reading() for record in records]


@torch.inference_mode()
def read(target: TargetModel, ids: Tensor) -> Reading:
    """Run a sequence of token ids [T] and record ids; hidden [T, d] bfloat16; denominator [T]
    float32, the log of the softmax denominator; best [T], the most likely next token."""
    record, start = TokenRecord(ids.tolist()), 0
    hidden = target.hidden(ids[None].to(target.device))[0]
    for some in hidden.split(max(1, LOGITS // target.vocabulary)):
        record.add(start, some, target.logits(some))
        start += len(some)
    return record.reading()
