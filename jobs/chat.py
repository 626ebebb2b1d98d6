"""Prompts of the playground: validation, continuation of conversations, and the API request for
each side. In blind comparisons, models are hidden until the vote."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from backend.decoding.limits import MIN_PENALTY, Temperature
from backend.errors import ConfigError, ConflictError, ModelError, for_field
from backend.models.facts import ModelFacts
from backend.models.layer_names import read_names
from backend.models.memory import RUNTIME_BYTES, weight_memory
from backend.options import option
from backend.queue import conversations, gate
from backend.queue.actor import Actor
from backend.queue.conversations import MAX_TURNS, Turn
from backend.queue.permissions import require_asking
from backend.store.session import writing
from jobs.fields.drafters import GenerationSide, parse_sides
from jobs.fields.models import decodable_model, load_saved_config
from jobs.fields.types import DEFAULT_MODEL, NewTokens, Precision, TreeSize
from jobs.kind import JobConfig
from jobs.limits import require_context, run_memory
from jobs.serving.openai_format import ChatBody
from jobs.submit import parse_config

SEEDS = 2**31
STOPS = "|"
RENAMED = {"max_new_tokens": "max_tokens", "chat": "chat_template"}  # setting -> API field
MODEL_MARGIN = 1.3  # factor for drafter and cache on top of the weights
ELSEWHERE = ("prompt", "sides", "threads", "device")  # fields that are not chat settings


class ChatSettings(JobConfig):
    """Prompt, models and sampling."""

    prompt: str = option(title="Prompt", min_length=1, max_length=8000, lines=4)
    """Prompt for all selected models."""
    sides: str = option(
        DEFAULT_MODEL, "Models and drafters", min_length=1, max_length=1000, many=True
    )
    """1–4 models, compressed runs or drafters."""
    system: str = option("", "System prompt", max_length=4000, lines=3)
    """Instructions for the models."""
    max_new_tokens: NewTokens = option(96, ge=1, le=4096)
    temperature: Temperature = option(0.0, "Temperature", ge=0, le=5)
    """0: greedy decoding."""
    top_k: int = option(0, "Top-k", ge=0, le=10**6, advanced=True)
    """Sample from the k most likely tokens. 0: from all."""
    top_p: float = option(1.0, "Top-p", gt=0, le=1, advanced=True)
    """Sample from the smallest set of tokens with this total probability."""
    repetition_penalty: float = option(
        1.0, "Repetition penalty", ge=MIN_PENALTY, le=10, advanced=True
    )
    """1: no penalty. Draft tokens are penalized by their own paths."""
    stop: str = option("", "Stop strings", max_length=300, advanced=True)
    """Strings that end a response, separated by |"""
    chat: bool = option(True, "Chat template", advanced=True)
    """Apply the chat template of the model, if it has one."""
    nodes: TreeSize = option(0, unit="nodes", advanced=True)
    lookup: bool = option(False, "Prompt lookup first")
    """Draft by n-gram matches in the context; fall back to the drafter."""
    precision: Precision = "auto"


def ask(values: Mapping[str, Any], blind: bool, actor: Actor, after: int | None = None) -> int:
    """Add a prompt and return its number. The caller then requests the answers; see `chat_request`.

    The prompt continues the conversation of `after` if its models are the same, and replaces
    `after` if that failed. Otherwise it starts a conversation.

    Args:
        values: values of `ChatSettings`.
        blind: True to hide the models until the vote.
        after: number of the previous prompt.

    Raises:
        ForbiddenError, RateLimitError: the actor lacks permission or asks too often.
        ConflictError: the previous prompt is still being answered.
        SlimscopeError: invalid settings; `field` names the setting.
    """
    gate.count_answer(actor, spend=False)
    config = parse_config(ChatSettings, values)
    # raises `SlimscopeError` if a model cannot decode or does not fit into memory
    models = [_facts(side, config) for side in parse_sides(config.sides)]
    shortest = min(models, key=lambda facts: facts.context)
    require_context(config.max_new_tokens, shortest, "Responses", "max_new_tokens", prompt=True)
    largest = max(models, key=weight_memory)
    device = run_memory(config.device).when_idle  # answers wait for the memory of other models
    weights = weight_memory(largest, device.dtype("bfloat16"))
    needed = {"runtime": RUNTIME_BYTES, "model": int(MODEL_MARGIN * weights)}
    device.require(needed, largest.title)
    sides = [*read_names(config.sides)]
    turns = conversations.turns_to(after) if after else []
    if turns and (turns[0].names != sides or turns[0].conversation.blind != blind):
        turns = []
    if turns and turns[-1].unanswered:
        raise ConflictError(
            "The prompt was not sent.",
            "The previous prompt is still being answered.",
            "Wait until it is finished, or stop it.",
        )
    if turns and not turns[-1].finished:
        ends = {answer.transcript[-1].get("end") for answer in turns[-1].answers.values()}
        turns = turns[:-1] if "error" in ends else turns
    if len(turns) >= MAX_TURNS:
        raise ConfigError(
            "The conversation cannot continue.",
            f"A conversation has at most {MAX_TURNS} prompts.",
            "Start a new chat.",
            "prompt",
        )
    characters = len(config.system) + len(config.prompt)
    for turn in turns:  # prompt and longest answer
        answers = [len(answer.text) for answer in turn.answers.values()]
        characters += len(turn.prompt.text) + max(answers, default=0)
    require_asking(actor, characters, config.max_new_tokens)
    gate.changes.spend(actor)
    gate.count_answer(actor)
    settings = config.model_dump(mode="json", exclude={*ELSEWHERE})
    with writing(durable=True) as session:
        if turns:
            conversation, parent = turns[-1].conversation.id, turns[-1].number
        else:
            conversation, parent = conversations.begin(sides, blind, actor, session).id, None
        return conversations.add_prompt(
            session, conversation, parent, config.prompt, settings, actor.signature
        ).id


def _facts(side: GenerationSide, config: ChatSettings) -> ModelFacts:
    """Return the facts of the model of a side, and check its drafter. Errors refer to `sides`."""
    if side.drafter:
        load_saved_config(side.drafter, side.name, "sides")
    with for_field("sides", ModelError):
        return decodable_model(side.model, config.precision, "sides").facts


def ask_again(number: int, actor: Actor) -> int:
    """Ask a prompt again with the next seed."""
    turn = conversations.turn(number)
    if would_repeat(turn):
        raise ConflictError(
            "The answers would be the same.",
            "At temperature 0 the seed has no effect.",
            "Raise the temperature under Settings and send the prompt again.",
        )
    settings = turn.prompt.settings
    seed = (int(settings.get("seed", 0)) + 1) % SEEDS
    values = settings | {"prompt": turn.prompt.text, "sides": ", ".join(turn.names), "seed": seed}
    return ask(values, turn.conversation.blind, actor, turn.prompt.parent)


def would_repeat(turn: Turn) -> bool:
    """Return True if another seed gives the same texts, because the temperature is 0."""
    return turn.finished and not turn.prompt.settings.get("temperature")


def chat_request(turns: Sequence[Turn], side: int) -> ChatBody:
    """Return the API request for the answer of a side (from 1) to the last of these prompts."""
    messages = []
    for turn in turns[:-1]:
        messages.append({"role": "user", "content": turn.prompt.text})
        messages.append({"role": "assistant", "content": turn.answers[side].text})
    messages.append({"role": "user", "content": turns[-1].prompt.text})
    settings = turns[-1].prompt.settings
    system = str(settings.get("system", ""))
    values = {RENAMED.get(name, name): value for name, value in settings.items()}
    fields = {name: value for name, value in values.items() if name in ChatBody.model_fields}
    system_message = [{"role": "system", "content": system}] if system.strip() else []
    stop = [*filter(None, str(settings.get("stop", "")).split(STOPS))]
    fields |= {
        "model": turns[-1].names[side - 1],
        "messages": [*system_message, *messages],
        "stop": stop,
        "stream": True,
        "details": True,
    }
    return ChatBody.model_validate(fields)


def is_hidden(turns: Sequence[Turn], voter: str) -> bool:
    """Return True if the models of the last turn are still hidden from `voter`: they have not voted
    in this blind conversation, and there is something to vote on."""
    last = turns[-1]
    if not last.conversation.blind or len(last.names) < 2:
        return False
    if not last.unanswered and not last.finished:
        return False
    return not any(voter in turn.votes for turn in turns)


def display_order(turn: Turn) -> list[int]:
    """Return the sides (from 1) in the order of the columns, shuffled in blind conversations."""
    sides = range(1, len(turn.names) + 1)
    if not turn.conversation.blind:
        return [*sides]
    conversation = turn.conversation
    key = f"{conversation.id} {conversation.created_at}"
    return sorted(sides, key=lambda n: zlib.crc32(f"{key} {n}".encode()))


def vote(number: int, choice: int, actor: Actor) -> None:
    """Vote for a side (from 1), `TIE` or `BAD`. Raises the errors of `conversations.cast`."""
    turns = conversations.turns_to(number)
    conversations.cast(number, choice, is_hidden(turns, actor.name), actor)
