"""Asking in the playground: what may be asked, what a conversation goes on with, and the request of
each side to the API. Authors are hidden until the vote."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from backend.decoding.limits import MIN_PENALTY, Temperature
from backend.errors import ConfigError, ConflictError, ModelError, for_field
from backend.models.facts import ModelFacts
from backend.models.layer_names import read_names
from backend.models.memory import RUNTIME, check_memory, memory_available, weight_memory
from backend.options import option
from backend.queue import conversations, gate
from backend.queue.actor import Actor
from backend.queue.conversations import MAX_TURNS, Turn
from backend.queue.permissions import require_asking
from backend.store.session import writing
from jobs.fields.drafters import GenerationSide, read_sides
from jobs.fields.models import decodable_model, saved_config
from jobs.fields.types import DEFAULT_MODEL, NewTokens, Precision, TreeSize
from jobs.kind import JobConfig
from jobs.limits import require_context
from jobs.serving.openai_format import ChatBody
from jobs.submit import parse_config

SEEDS = 2**31
STOPS = "|"
RENAMED = {"max_new_tokens": "max_tokens", "chat": "chat_template"}  # setting -> field of a body
MODEL_MARGIN = 1.3  # memory of a drafter and its cache beside the weights
ELSEWHERE = ("prompt", "sides", "threads", "device")  # fields that are no setting of a chat


class ChatSettings(JobConfig):
    """Prompt, models and sampling."""

    prompt: str = option(title="Prompt", min_length=1, max_length=8000, lines=4)
    """Sent to every selected model."""
    sides: str = option(
        DEFAULT_MODEL, "Models and drafters", min_length=1, max_length=1000, many=True
    )
    """1–4 models, compressed runs or Amphista drafters."""
    system: str = option("", "System prompt", max_length=4000, lines=3)
    """Tells the models how to answer."""
    max_new_tokens: NewTokens = option(96, ge=1, le=4096)
    temperature: Temperature = option(0.0, "Temperature", ge=0, le=5)
    """0: greedy decoding."""
    top_k: int = option(0, "Top-k", ge=0, le=10**6, advanced=True)
    """Samples from the k likeliest tokens. 0: from all."""
    top_p: float = option(1.0, "Top-p", gt=0, le=1, advanced=True)
    """Samples from the smallest set of tokens with this total probability."""
    repetition_penalty: float = option(
        1.0, "Repetition penalty", ge=MIN_PENALTY, le=10, advanced=True
    )
    """1: none. Each draft token is penalized by its own path."""
    stop: str = option("", "Stop strings", max_length=300, advanced=True)
    """Strings that end a response, separated by |"""
    chat: bool = option(True, "Chat template", advanced=True)
    """Applies the model's chat template, if it has one."""
    nodes: TreeSize = option(0, unit="nodes", advanced=True)
    lookup: bool = option(False, "Prompt lookup first")
    """Prompt-lookup decoding: draft by n-gram match in the context; fall back to the drafter."""
    precision: Precision = "auto"


def ask(values: Mapping[str, Any], blind: bool, actor: Actor, after: int | None = None) -> int:
    """The number of a new prompt, whose sides are to be answered; see `body_of`. With other models
    than the prompt `after`, it begins a conversation; after one that failed, it takes its place.

    Args:
        values: of `ChatSettings`.

    Raises:
        ForbiddenError, RateLimitError: the actor may not ask, or not so often.
        ConflictError: the prompt before is still being answered.
        SlimscopeError: it cannot be answered; `field` says where it is wrong.
    """
    gate.count_answer(actor, spend=False)
    config = parse_config(ChatSettings, values)
    # raise `SlimscopeError` if one of the models cannot answer, or is too large for the memory
    models = [_facts(side, config) for side in read_sides(config.sides)]
    shortest = min(models, key=lambda facts: facts.context)
    require_context(config.max_new_tokens, shortest, "Responses", "max_new_tokens", prompt=True)
    largest = max(models, key=weight_memory)
    needed = {"runtime": RUNTIME, "model": int(MODEL_MARGIN * weight_memory(largest))}
    check_memory(needed, memory_available(), largest.title)
    sides = [*read_names(config.sides)]
    before = conversations.turns_to(after) if after else []
    if before and (before[0].names != sides or before[0].conversation.blind != blind):
        before = []
    if before and before[-1].unanswered:
        raise ConflictError(
            "The prompt was not sent.",
            "The last prompt is still being answered.",
            "Wait for its end, or stop it.",
        )
    if before and not before[-1].finished:
        ends = {each.transcript[-1].get("end") for each in before[-1].answers.values()}
        before = before[:-1] if "error" in ends else before
    if len(before) >= MAX_TURNS:
        raise ConfigError(
            "The conversation cannot go on.",
            f"A conversation has at most {MAX_TURNS} prompts.",
            "Begin a new chat.",
            "prompt",
        )
    letters = len(config.system) + len(config.prompt)
    for turn in before:  # a prompt and its longest answer
        answers = [len(each.text) for each in turn.answers.values()]
        letters += len(turn.prompt.text) + max(answers, default=0)
    require_asking(actor, letters, config.max_new_tokens)
    gate.changes.spend(actor)
    gate.count_answer(actor)
    settings = config.model_dump(mode="json", exclude={*ELSEWHERE})
    with writing(durable=True) as session:
        if before:
            conversation, parent = before[-1].conversation.id, before[-1].number
        else:
            conversation, parent = conversations.begin(sides, blind, actor, session).id, None
        return conversations.add_prompt(
            session, conversation, parent, config.prompt, settings, actor.signature
        ).id


def _facts(side: GenerationSide, config: ChatSettings) -> ModelFacts:
    """Facts of the model that decodes for a side, whose drafter exists; errors name `sides`."""
    if side.drafter:
        saved_config(side.drafter, side.name, "sides")
    with for_field("sides", ModelError):
        return decodable_model(side.model, config.precision, "sides").facts


def ask_again(number: int, actor: Actor) -> int:
    """Ask a prompt again, with the next seed."""
    turn = conversations.turn(number)
    if would_repeat(turn):
        raise ConflictError(
            "The answers would be the same.",
            "At temperature 0 the seed changes nothing.",
            "Raise the temperature under Settings and send the prompt again.",
        )
    settings = turn.prompt.settings
    seed = (int(settings.get("seed", 0)) + 1) % SEEDS
    values = settings | {"prompt": turn.prompt.text, "sides": ", ".join(turn.names), "seed": seed}
    return ask(values, turn.conversation.blind, actor, turn.prompt.parent)


def would_repeat(turn: Turn) -> bool:
    """True where the same prompt gives the same texts: at temperature 0 the seed has no effect."""
    return turn.finished and not turn.prompt.settings.get("temperature")


def body_of(turns: Sequence[Turn], side: int) -> ChatBody:
    """The request for the answer of one side, from 1, to the last of these prompts."""
    said = []
    for turn in turns[:-1]:
        said.append({"role": "user", "content": turn.prompt.text})
        said.append({"role": "assistant", "content": turn.answers[side].text})
    said.append({"role": "user", "content": turns[-1].prompt.text})
    settings = turns[-1].prompt.settings
    system = str(settings.get("system", ""))
    values = {RENAMED.get(name, name): value for name, value in settings.items()}
    kept = {name: value for name, value in values.items() if name in ChatBody.model_fields}
    first = [{"role": "system", "content": system}] if system.strip() else []
    stop = [*filter(None, str(settings.get("stop", "")).split(STOPS))]
    about = {"model": turns[-1].names[side - 1], "messages": [*first, *said], "stop": stop}
    return ChatBody.model_validate(kept | about | {"stream": True, "details": True})


def is_hidden(turns: Sequence[Turn], voter: str) -> bool:
    """Whether `voter` may not know yet which model wrote what in the last of these turns: until
    they have voted on it or on one before it, or there is nothing to vote on."""
    last = turns[-1]
    if not last.conversation.blind or len(last.names) < 2:
        return False
    if not last.unanswered and not last.finished:
        return False
    return not any(voter in each.votes for each in turns)


def display_order(turn: Turn) -> list[int]:
    """The sides, from 1, as the columns show them: shuffled where names are hidden at first."""
    sides = range(1, len(turn.names) + 1)
    if not turn.conversation.blind:
        return [*sides]
    conversation = turn.conversation
    mark = f"{conversation.id} {conversation.created_at}"
    return sorted(sides, key=lambda n: zlib.crc32(f"{mark} {n}".encode()))


def vote(number: int, choice: int, actor: Actor) -> None:
    """Vote on the answers to a prompt for a side, from 1, or `TIE` or `BAD`; raises what
    `conversations.cast` does."""
    turns = conversations.turns_to(number)
    conversations.cast(number, choice, is_hidden(turns, actor.name), actor)
