"""One prompt, up to four models or drafters: a short job whose texts are watched as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from backend.methods.amphista.checkpoint import Amphista
from backend.methods.amphista.decoding.acceptance import Sampling, acceptance
from backend.methods.amphista.decoding.cost_model import measure_costs
from backend.methods.amphista.decoding.engine import decode
from backend.methods.amphista.decoding.proposers import PromptLookupFirst, Proposer
from backend.methods.amphista.generate import Detokenizer, make_proposer, refuse_processors
from backend.methods.amphista.target_model import TargetModel
from backend.models.loading import LoadedModel
from backend.reporter import stop_if_asked
from backend.text.prompt_ids import end_ids, prompt_ids
from jobs.generate.config import STOPS, GenerateJob, GenerationSide, read_sides
from jobs.generate.transcript import ENDS, read_transcript, transcript_writer
from jobs.runtime.context import JobContext
from jobs.runtime.environment import prepare
from jobs.runtime.loading import load_model


def run(config: GenerateJob, context: JobContext) -> None:
    """Generate one side after the other; those an earlier attempt has finished are kept."""
    device, sides = prepare(config, context), read_sides(config.sides)
    current: tuple[str, LoadedModel, TargetModel] | None = None
    for number, side in enumerate(sides, 1):
        context.progress(number - 1, len(sides), f"{side.name} generates")
        if not read_transcript(context.run, number).end:
            if current is None or current[0] != side.model:
                current = None  # one model at a time
                current = side.model, *_load(side, device, config, context)
            answer(config, side, number, current[1], current[2], context)
        record(side, number, context)


def _load(
    side: GenerationSide, device: str, config: GenerateJob, context: JobContext
) -> tuple[LoadedModel, TargetModel]:
    loaded = load_model(side.model, device, config.precision, context)
    target = TargetModel(loaded.model)
    context.log(f"Decoder: {target.decoder}.")
    return loaded, target


def answer(
    config: GenerateJob,
    side: GenerationSide,
    number: int,
    loaded: LoadedModel,
    target: TargetModel,
    context: JobContext,
) -> None:
    """Generate one side's text, step by step."""
    refuse_processors(loaded.model)
    drafter = Amphista.load(side.drafter) if side.drafter else None
    proposer = make_proposer(target, drafter, config.nodes)
    if drafter:
        context.log(f"{side.name}: {drafter.arm}, a tree of {proposer.nodes} nodes.")
    if config.lookup:
        proposer = PromptLookupFirst(proposer, measure_costs(target).lookup_length)
    tokenizer = loaded.tokenizer
    ids = (
        prompt_ids(config.prompt, tokenizer) if config.chat else tokenizer(config.prompt).input_ids
    )
    with transcript_writer(context.run, number) as writer:
        for row in passes(config, target, proposer, list(ids), loaded, context):
            writer.add(**row)


def passes(
    config: GenerateJob,
    target: TargetModel,
    proposer: Proposer,
    ids: list[int],
    loaded: LoadedModel,
    context: JobContext,
) -> Iterator[dict[str, object]]:
    """The lines of one side's file (see `jobs.generate.transcript`)."""
    ends = end_ids(loaded.tokenizer, loaded.model.generation_config)
    detokenizer = Detokenizer(loaded.tokenizer, config.stop.split(STOPS))
    token, rule = -1, acceptance(sampling(config))
    for step in decode(target, proposer, ids, rule, config.max_new_tokens, ends):
        stop_if_asked(context)
        tokens = []
        for token, head in zip(step.tokens, step.heads, strict=True):
            tokens.append((detokenizer.add(token), head))
            if detokenizer.stopped:
                break
        rejected = [loaded.tokenizer.decode([token]) for token in step.rejected]
        yield {"ms": 1000 * sum(step.seconds.values()), "tokens": tokens, "rejected": rejected}
        if detokenizer.stopped:
            break
    why = "stop" if detokenizer.stopped else "end" if token in ends else "limit"
    yield {"end": why, "rest": detokenizer.rest()}


def sampling(config: GenerateJob) -> Sampling:
    """The sampling settings of a config."""
    return Sampling(**config.model_dump(include={field.name for field in fields(Sampling)}))


def record(side: GenerationSide, number: int, context: JobContext) -> None:
    """Record the figures of a side that has ended."""
    written, stage = read_transcript(context.run, number), f"side-{number}"
    about: dict[str, Any] = {"side": side.name, "end": written.end, "tokens": len(written.tokens)}
    if written.speed and written.accepted:
        context.result(stage, "tokens_per_second", written.speed, n=1, **about)
        context.result(stage, "accepted_length", written.accepted, n=len(written.passes) - 1)
    context.log(f"{side.name}: {len(written.tokens)} tokens, {ENDS[written.end]}.")
