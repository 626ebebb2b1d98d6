"""Answers of up to four models or drafters to one prompt, written at the same time, in the process
of the playground, whose models stay in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from backend.decoding.acceptance import Acceptance, Sampling
from backend.decoding.detokenizer import Detokenizer
from backend.decoding.engine import decode
from backend.decoding.native.cache import NativeCache
from backend.decoding.prompt_lookup import PromptLookupFirst
from backend.decoding.proposers import Proposer
from backend.drafters.generate import refuse_processors
from backend.drafters.tree_proposer import tree_words
from backend.errors import CancelledError
from backend.reporter import stop_if_asked
from backend.store.session import now_ms
from backend.store.tables import Job
from backend.text.prompt_ids import chat_ids, end_ids
from jobs.generate.config import STOPS, GenerateJob, GenerationSide, read_sides
from jobs.generate.conversation import chain, messages, turns
from jobs.generate.transcript import ENDS, TranscriptWriter, read_transcript, transcript_writer
from jobs.metrics import ACCEPTED_LENGTH, TOKENS_PER_SECOND
from jobs.playground.cards import use_card
from jobs.playground.context import AnswerContext
from jobs.playground.warm_model import WarmModel
from jobs.runtime.environment import place
from jobs.runtime.loading import load_model


def run(config: GenerateJob, context: AnswerContext) -> None:
    """Generate all sides at once; those an earlier attempt has finished are kept. One that fails
    does not end the others; the run fails with its error when they are done."""
    sides, before = read_sides(config.sides), chain(config.follows)
    context.progress(0, len(sides), "generating")
    with ThreadPoolExecutor(len(sides), thread_name_prefix=context.run) as threads:
        answers = [
            threads.submit(SideAnswer(config, side, number, before, context).give)
            for number, side in enumerate(sides, 1)
            if not read_transcript(context.run, number).complete
        ]
    errors = [error for answer in answers if (error := answer.exception())]
    stop_if_asked(context)
    for number, side in enumerate(sides, 1):
        record(side, number, context)
    for error in errors:
        raise error


@dataclass(frozen=True)
class SideAnswer:
    """The text of one side, whose `number` counts from 1, after the runs `before`."""

    config: GenerateJob
    side: GenerationSide
    number: int
    before: Sequence[Job]
    context: AnswerContext

    def give(self) -> None:
        with transcript_writer(self.context.run, self.number) as writer:
            try:
                self._write(writer)
            except CancelledError:
                raise
            except Exception:
                writer.add(end="error", rest="")
                raise

    def _write(self, writer: TranscriptWriter) -> None:
        config, context, side = self.config, self.context, self.side

        def say(what: str, about: float) -> None:
            writer.add(waits=what, about=about, at=now_ms())

        with (
            context.share.one_more(context.guest),
            context.models.using(
                side.model, config.device, config.precision,
                partial(load_model, side.model, precision=config.precision, context=context),
                say, context,
            ) as model,
        ):  # fmt: skip
            use_card(model.device)
            context.share.apply(config.threads)
            refuse_processors(model.loaded.model)
            if side.drafter and not model.knows(side.drafter, config.nodes):
                say("Measuring the drafter", 0.0)
            with model.proposer(side.drafter, config.nodes) as proposer:
                tree = tree_words(proposer) if proposer.nodes > 1 else "without a drafter"
                context.log(f"{side.name}: {model.target.decoder}, {tree}.")
                if side.drafter and proposer.nodes == 1:
                    writer.add(unused=True)
                if config.lookup:
                    proposer = PromptLookupFirst(proposer, model.lookup_length())
                for row in self.passes(model, proposer):
                    writer.add(**row)
            context.environment(**place(model.device, context.share.threads(config.threads)))

    def passes(self, model: WarmModel, proposer: Proposer) -> Iterator[dict[str, object]]:
        """The lines of the side's file (see `jobs.generate.transcript`)."""
        config, loaded = self.config, model.loaded
        ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
        detokenizer = Detokenizer(loaded.tokenizer, config.stop.split(STOPS))
        sampling = Sampling(**config.model_dump(include={x.name for x in fields(Sampling)}))
        said = messages(turns(self.before, self.number), config.prompt, config.system)
        ids = self.context.main.call(partial(chat_ids, said, loaded.tokenizer, config.chat))
        token, rule = -1, Acceptance(sampling)
        cache = self._recall(model, ids, proposer)
        steps = decode(model.target, proposer, ids, rule, config.max_new_tokens, ends, cache)
        committed = [*ids]
        for step in steps:
            stop_if_asked(self.context)
            committed += step.tokens
            tokens = []
            for token, head in zip(step.tokens, step.heads, strict=True):
                tokens.append((detokenizer.add(token), head))
                if detokenizer.stopped:
                    break
            rejected = [loaded.tokenizer.decode([token]) for token in step.rejected]
            yield {"ms": 1000 * sum(step.seconds.values()), "tokens": tokens, "rejected": rejected}
            if detokenizer.stopped:
                break
            self.context.share.apply(config.threads)  # a job or another text may have begun
        if cache is not None:
            model.remember(committed, cache)
        why = "stop" if detokenizer.stopped else "end" if token in ends else "limit"
        yield {"end": why, "rest": detokenizer.rest()}

    def _recall(self, model: WarmModel, ids: list[int], proposer: Proposer) -> NativeCache | None:
        """A cache of what was read of this conversation; None with a drafter, which needs all
        states."""
        capacity = len(ids) + self.config.max_new_tokens + proposer.nodes
        fits = capacity - proposer.nodes <= model.target.context
        if self.side.drafter or model.target.native is None or not fits:
            return None
        return model.recall(ids, capacity) or model.target.native.new_cache(capacity)


def record(side: GenerationSide, number: int, context: AnswerContext) -> None:
    written, stage = read_transcript(context.run, number), f"side-{number}"
    if not written.complete:
        return
    about: dict[str, Any] = {"side": side.name, "end": written.end, "tokens": len(written.tokens)}
    if written.speed:
        context.result(stage, TOKENS_PER_SECOND, written.speed, n=1, **about)
    if written.accepted:
        context.result(stage, ACCEPTED_LENGTH, written.accepted, n=len(written.passes) - 1)
    context.log(f"{side.name}: {len(written.tokens)} tokens, {ENDS[written.end]}.")
