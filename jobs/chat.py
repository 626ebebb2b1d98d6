"""Asking in the playground: what may be asked, what a conversation goes on with, and the request of
each side to the API. Authors are hidden until the vote; votes make the leaderboard."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from backend.errors import ConfigError, ConflictError
from backend.evaluation.preferences import Comparison, Rating, ratings
from backend.models.layer_names import read_names
from backend.queue import conversations
from backend.queue.actor import Actor
from backend.queue.conversations import BAD, MAX_TURNS, TIE, Turn, all_votes
from backend.queue.permissions import require_asking
from backend.queue.rate_limit import count_answer, count_change
from backend.store.session import writing
from jobs.generate.kind import NAME, GenerateJob, chat_body
from jobs.serving.openai_format import ChatBody
from jobs.submit import checked

SEEDS = 2**31
ELSEWHERE = ("prompt", "sides", "threads", "device")  # fields that are no setting of a chat
MIN_VOTES = 10  # votes, below which a leaderboard says little


def ask(values: Mapping[str, Any], blind: bool, actor: Actor, after: int | None = None) -> int:
    """The number of a new prompt, whose sides are to be answered; see `body_of`. With other models
    than the prompt `after`, it begins a conversation; after one that failed, it takes its place.

    Args:
        values: of a `GenerateJob`.

    Raises:
        ForbiddenError, RateLimitError: the actor may not ask, or not so often.
        ConflictError: the prompt before is still being answered.
        SlimscopeError: it cannot be answered; `field` says where it is wrong.
    """
    count_answer(actor, spend=False)
    config, _ = checked(NAME, values)
    assert isinstance(config, GenerateJob)
    sides = [*read_names(config.sides)]
    before = conversations.turns_to(after) if after else []
    if before and (before[0].names != sides or before[0].conversation.blind != blind):
        before = []
    if before and before[-1].unanswered:
        why = "The last prompt is still being answered."
        raise ConflictError("The prompt was not sent.", why, "Wait for its end, or stop it.")
    if before and not before[-1].finished:
        ends = {each.transcript[-1].get("end") for each in before[-1].answers.values()}
        before = before[:-1] if "error" in ends else before
    if len(before) >= MAX_TURNS:
        why = f"A conversation has at most {MAX_TURNS} prompts."
        raise ConfigError("The conversation cannot go on.", why, "Begin a new chat.", "prompt")
    letters = len(config.system) + len(config.prompt)
    for turn in before:  # a prompt and its longest answer
        answers = [len(each.text) for each in turn.answers.values()]
        letters += len(turn.prompt.text) + max(answers, default=0)
    require_asking(actor, letters, config.max_new_tokens)
    count_change(actor)
    count_answer(actor)
    settings = config.model_dump(mode="json", exclude={*ELSEWHERE})
    with writing(durable=True) as session:
        if before:
            conversation, parent = before[-1].conversation.id, before[-1].number
        else:
            conversation, parent = conversations.begin(sides, blind, actor, session).id, None
        return conversations.add_prompt(
            session, conversation, parent, config.prompt, settings, actor.signature
        ).id


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
    return chat_body(turns[-1].prompt.settings, turns[-1].names[side - 1], said)


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


@dataclass(frozen=True)
class Leaderboard:
    """Ratings of models by blind votes; `seen`: further votes, whose voters saw the names."""

    ratings: list[Rating]
    votes: int
    seen: int


def leaderboard() -> Leaderboard:
    stored = all_votes()
    blind = [each for each in stored if each.blind]
    pairs = [pair for each in blind for pair in _pairs(each.names, each.choice)]
    return Leaderboard(ratings(pairs), len(blind), len(stored) - len(blind))


def _pairs(names: list[str], choice: int) -> Iterator[Comparison]:
    """What a vote says of each pair: the winner beats all others, between which it says nothing;
    a tie, or all bad, makes all of them equal."""
    if choice in (TIE, BAD):
        for one, other in combinations(names, 2):
            yield Comparison(one, other, 0.5)
    elif choice <= len(names):
        winner = names[choice - 1]
        for n, other in enumerate(names, 1):
            if n != choice:
                yield Comparison(winner, other, 1.0)
