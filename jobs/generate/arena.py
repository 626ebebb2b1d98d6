"""Votes for answers whose authors are hidden, and the leaderboard they make."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from backend.errors import ConfigError
from backend.evaluation.preferences import Comparison, Rating, ratings
from backend.models.layer_names import read_names
from backend.queue import votes
from backend.queue.actor import Actor
from backend.queue.votes import BAD, TIE, all_votes, votes_of
from backend.store.states import TERMINAL, State
from backend.store.tables import Job
from jobs.generate.conversation import turns_to

MIN_VOTES = 10  # votes, below which a leaderboard says little


def names_of(job: Job) -> list[str]:
    return list(read_names(str(job.config.get("sides", ""))))


def is_hidden(job: Job, voter: str) -> bool:
    """Whether `voter` may not know yet which model wrote what: until they have voted on the run, or
    on one before it in the conversation, or there is nothing to vote on."""
    if not job.config.get("blind") or len(names_of(job)) < 2:
        return False
    if job.state in TERMINAL and job.state != State.SUCCEEDED:
        return False
    return not any(voter in votes_of(each.id) for each in turns_to(job))


def display_order(job: Job) -> list[int]:
    """The sides, from 1, as the columns show them: shuffled where names are hidden at first."""
    sides = range(1, len(names_of(job)) + 1)
    if not job.config.get("blind"):
        return [*sides]
    first = turns_to(job)[0].run
    return sorted(sides, key=lambda n: zlib.crc32(f"{first} {n}".encode()))


def vote(run: Job, choice: int, actor: Actor) -> None:
    """Vote for a side, from 1, or `TIE` or `BAD`.

    Raises:
        ConfigError: there is no such side, or only one.
        ConflictError, ForbiddenError, RateLimitError: see `votes.cast`.
    """
    sides = len(names_of(run))
    if sides < 2 or choice not in (BAD, TIE, *range(1, sides + 1)):
        raise ConfigError("The vote was not saved.", "There is no such answer.")
    votes.cast(run.id, choice, is_hidden(run, actor.name), actor)


@dataclass(frozen=True)
class Leaderboard:
    """Ratings of models by blind votes; `seen`: further votes, whose voters saw the names."""

    ratings: list[Rating]
    votes: int
    seen: int


def leaderboard() -> Leaderboard:
    stored = all_votes()
    blind = [each for each in stored if each.blind]
    pairs = [
        pair
        for each in blind
        for pair in _pairs([*read_names(str(each.config.get("sides", "")))], each.choice)
    ]
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
