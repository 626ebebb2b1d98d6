"""Answers of up to four models or drafters to one prompt, one after the other, by the engine that
answers in the playground."""

from __future__ import annotations

import queue
from dataclasses import fields
from typing import Any

import torch

from backend.decoding.acceptance import Sampling
from backend.decoding.proposers import Proposer
from backend.decoding.serving.engine import Engine
from backend.decoding.serving.request import Finished, GenerationRequest, Progress, Waiting
from backend.decoding.target_model import TargetModel
from backend.drafters.checkpoint import Amphista
from backend.drafters.generate import make_proposer, refuse_processors
from backend.drafters.tree_proposer import tree_words
from backend.errors import CancelledError
from backend.models.memory import memory_available
from backend.reporter import stop_if_asked
from backend.text.prompt_ids import chat_ids, end_ids
from jobs.fields.sides import GenerationSide, read_sides
from jobs.generate.config import STOPS, GenerateJob
from jobs.metrics import ACCEPTED_LENGTH, TOKENS_PER_SECOND
from jobs.runtime.context import JobContext
from jobs.runtime.environment import place
from jobs.runtime.loading import load_model
from jobs.serving.cards import choose_card, use_card
from jobs.serving.one_answer import row_of
from jobs.serving.transcript import ENDS, TranscriptWriter, read_transcript, transcript_writer

CACHE_SHARE = 0.25  # of the free memory, for keys and values
WAIT_S = 0.2  # between two looks at whether the run should stop


def run(config: GenerateJob, context: JobContext) -> None:
    """Generate each side; those an earlier attempt has finished are kept. One that fails does not
    end the others; the run fails with its error when they are done."""
    sides, errors = read_sides(config.sides), list[Exception]()
    for number, side in enumerate(sides, 1):
        context.progress(number - 1, len(sides), "generating")
        if not read_transcript(context.run, number).complete:
            try:
                generate_side(config, side, number, context)
            except CancelledError:
                raise
            except Exception as error:
                context.log(f"{side.name}: {error}")
                errors.append(error)
        record(side, number, context)
    if errors:
        raise errors[0]


def generate_side(
    config: GenerateJob, side: GenerationSide, number: int, context: JobContext
) -> None:
    """The text of one side, whose `number` counts from 1."""
    with transcript_writer(context.run, number) as writer:
        try:
            device = choose_card(config.device)
            use_card(device)
            loaded = load_model(side.model, device, config.precision, context)
            refuse_processors(loaded.model)
            target = TargetModel(loaded.model)
            proposer: Proposer | None = None
            if side.drafter:
                proposer = make_proposer(target, Amphista.load(side.drafter), config.nodes)
            if proposer and proposer.nodes == 1:
                proposer = None  # no tree pays on this machine
            tree = tree_words(proposer) if proposer else "without a drafter"
            context.log(f"{side.name}: {target.decoder}, {tree}.")
            context.environment(**place(device, torch.get_num_threads()))
            writer.add(unused=bool(side.drafter) and not proposer)
            said = [{"role": "system", "content": config.system}] if config.system.strip() else []
            said.append({"role": "user", "content": config.prompt})
            request = GenerationRequest(
                prompt=tuple(chat_ids(said, loaded.tokenizer, config.chat)),
                max_tokens=config.max_new_tokens,
                sampling=Sampling(**config.model_dump(include={x.name for x in fields(Sampling)})),
                ends=end_ids(loaded.tokenizer, loaded.model.generation_config),
                stop=tuple(filter(None, config.stop.split(STOPS))),
                drafter=proposer,
                lookup=config.lookup,
            )
            memory = int(CACHE_SHARE * memory_available())
            engine = Engine(target, loaded.tokenizer, memory=memory, threads=torch.get_num_threads)
            try:
                write(engine, request, writer, context)
            finally:
                engine.close()
        except CancelledError:
            raise
        except Exception as error:
            writer.add(end="error", rest="", error=str(error))
            raise


def write(
    engine: Engine, request: GenerationRequest, writer: TranscriptWriter, context: JobContext
) -> None:
    """Add what the engine generates to a file, until it has finished."""
    events: queue.SimpleQueue[Waiting | Progress | Finished] = queue.SimpleQueue()
    ticket = engine.submit(request, events.put)
    try:
        while True:
            stop_if_asked(context)
            try:
                event = events.get(timeout=WAIT_S)
            except queue.Empty:
                continue
            if isinstance(event, Finished) and event.error:
                raise event.error
            if not isinstance(event, Waiting):
                writer.add(**row_of(event))
            if isinstance(event, Finished):
                return
    finally:
        ticket.cancel()


def record(side: GenerationSide, number: int, context: JobContext) -> None:
    written, stage = read_transcript(context.run, number), f"side-{number}"
    if not written.complete:
        return
    about: dict[str, Any] = {"side": side.name, "end": written.end, "tokens": len(written.tokens)}
    if written.speed:
        context.result(stage, TOKENS_PER_SECOND, written.speed, n=1, **about)
    if written.accepted:
        context.result(stage, ACCEPTED_LENGTH, written.accepted, n=len(written.passes) - 1)
    context.log(f"{side.name}: {len(written.tokens)} tokens, {ENDS[written.end]}.")
