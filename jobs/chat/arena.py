"""Answers whose authors are hidden until the vote, and the leaderboard that votes make."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from backend.evaluation.preferences import Comparison, Rating, ratings
from backend.models.layer_names import read_names
from backend.queue import conversations
from backend.queue.actor import Actor
from backend.queue.conversations import BAD, TIE, Turn, all_votes

MIN_VOTES = 10  # votes, below which a leaderboard says little


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
    pairs = [pair for each in blind for pair in _pairs([*read_names(each.sides)], each.choice)]
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
