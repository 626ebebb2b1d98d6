"""Answers of up to four models or drafters to one prompt, one after the other, as the playground
gives them; recorded with the run."""

import asyncio
from contextlib import aclosing
from typing import Any

import torch

from backend.decoding.serving.request import Finished, NewPieces
from backend.errors import CancelledError, SlimscopeError
from backend.reporter import stop_if_asked
from jobs.fields.drafters import GenerationSide, read_sides
from jobs.generate.kind import GenerateJob, chat_body
from jobs.metrics import ACCEPTED_LENGTH, TOKENS_PER_SECOND
from jobs.runtime.context import JobContext
from jobs.runtime.environment import place
from jobs.serving.answering import Answering, Began
from jobs.serving.one_answer import row_of
from jobs.serving.pool import ModelPool, choose_card
from jobs.serving.transcript import ENDS, TranscriptWriter, read_transcript, transcript_writer


def run(config: GenerateJob, context: JobContext) -> None:
    """Generate each side; those an earlier attempt has finished are kept. One that fails does not
    end the others; the run fails with its error when they are done."""
    sides, errors = read_sides(config.sides), list[Exception]()
    pool = ModelPool(torch.get_num_threads)
    for number, side in enumerate(sides, 1):
        context.progress(number - 1, len(sides), "generating")
        if not read_transcript(context.run, number).complete:
            with transcript_writer(context.run, number) as writer:
                try:
                    asyncio.run(write(config, side, pool, writer, context))
                except CancelledError:
                    raise
                except Exception as error:
                    writer.add(end="error", rest="", error=str(error))
                    errors.append(error)
        record(side, number, context)
    if errors:
        raise errors[0]


async def write(
    config: GenerateJob,
    side: GenerationSide,
    pool: ModelPool,
    writer: TranscriptWriter,
    context: JobContext,
) -> None:
    """Add what one side answers to its file, row by row."""
    body = chat_body(config.model_dump(), side.name, [{"role": "user", "content": config.prompt}])
    device = choose_card(config.device)
    context.environment(**place(device, torch.get_num_threads()))
    answering = Answering(body, "", pool, device, context)
    async with aclosing(answering.events()) as events:
        async for _, happened in events:
            stop_if_asked(context)
            if isinstance(happened, SlimscopeError):
                raise happened
            if isinstance(happened, Finished) and happened.error:
                raise happened.error
            if isinstance(happened, Began):
                context.log(f"{side.name}: {happened.decoder}, {happened.tree}.")
                writer.add(decoder=happened.decoder, unused=happened.unused)
            elif isinstance(happened, NewPieces | Finished):
                writer.add(**row_of(happened))


def record(side: GenerationSide, number: int, context: JobContext) -> None:
    written, stage = read_transcript(context.run, number), f"side-{number}"
    if not written.complete:
        return
    about: dict[str, Any] = {"side": side.name, "end": written.end, "decoder": written.decoder}
    about["tokens"] = len(written.tokens)
    if written.speed:
        context.result(stage, TOKENS_PER_SECOND, written.speed, n=1, **about)
    if written.accepted:
        context.result(stage, ACCEPTED_LENGTH, written.accepted, n=len(written.passes) - 1)
    context.log(f"{side.name}: {len(written.tokens)} tokens, {ENDS[written.end]}.")
