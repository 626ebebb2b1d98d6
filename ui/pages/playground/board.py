"""A conversation, the votes for its answers, and the conversations before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backend.queue import permissions
from backend.queue.actor import Actor
from backend.queue.votes import BAD, TIE, votes_of
from backend.store import queries
from backend.store.states import ACTIVE, Lane, State
from backend.store.tables import Job
from jobs.generate.arena import MIN_VOTES, display_order, is_hidden, leaderboard, names_of
from jobs.generate.conversation import conversations, turns_to
from ui.pages.playground.answers import HTML, LETTERS, Answer, answers_of, heads_of
from ui.runs.html import error_of, model_name
from ui.runs.results import speed_conditions
from ui.runs.token_strip import tints

VOTE = "vote"  # leads the action of a button that votes; the choice follows
MAX_EARLIER = 30
MAX_PROMPT = 120  # characters of an earlier prompt
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lost dog who finds a friend.",
    "List five ways to save energy at home.",
)


@dataclass(frozen=True)
class ShownTurn:
    job: Job
    answers: list[Answer]
    error: Markup
    votes: Markup
    buttons: Markup


def conversation(job: Job, actor: Actor) -> Markup:
    jobs = turns_to(job)
    live = job.run if job.state in ACTIVE else ""
    heads, together = heads_of(jobs, actor.name), len(names_of(job)) > 1
    conditions = speed_conditions(job, queries.results([job.id]))
    legend = HTML.legend(tints(heads) if heads else [], together, conditions)
    shown = [each for each in jobs if each.removed_at is None]
    turns = [_turn(each, actor, last=each.run == job.run) for each in shown]
    return HTML.conversation(turns, live, legend)


def _turn(job: Job, actor: Actor, last: bool) -> ShownTurn:
    answers = answers_of(job, actor.name)
    below = Markup()
    if last:
        below = HTML.turn_buttons(
            job.run,
            job.state in ACTIVE,
            permissions.may_not_cancel(actor, job.owner),
            permissions.may_not_add(actor, Lane.PLAYGROUND),
            would_repeat(job),
        )
    return ShownTurn(job, answers, error_of(job), _votes(job, actor, last), below)


def would_repeat(job: Job) -> bool:
    """True where the same prompt gives the same texts: at temperature 0 the seed has no effect."""
    return job.state == State.SUCCEEDED and not job.config.get("temperature")


def choices(job: Job) -> dict[int, str]:
    sides, two = display_order(job), len(names_of(job)) == 2
    better = "better" if two else "best"
    letters = zip(sides, LETTERS, strict=False)
    first, *others = [(side, f"{letter} is {better}") for side, letter in letters]
    both = [(TIE, "Tie"), (BAD, "Both are bad" if two else "All are bad")]
    return dict([first, *both, *others] if two else [first, *others, *both])


def _votes(job: Job, actor: Actor, last: bool) -> Markup:
    if len(names_of(job)) < 2 or job.state != State.SUCCEEDED:
        return Markup()
    votes = votes_of(job.id)
    if actor.name not in votes:
        if not last:
            return Markup()
        return HTML.vote_buttons(job.run, [*choices(job).items()], permissions.may_not_vote(actor))
    counted = Counter(votes.values())
    tally = [(_said(job, choice), count) for choice, count in counted.most_common()]
    return HTML.voted(_said(job, votes[actor.name]), tally if len(votes) > 1 else [])


def _said(job: Job, choice: int) -> str:
    names = names_of(job)
    if not 1 <= choice <= len(names):
        return choices(job).get(choice, "").lower()
    return f"{names[choice - 1]} is {'better' if len(names) == 2 else 'best'}"


def history(jobs: Sequence[Job], current: Job | None, voter: str, now: int) -> Markup:
    shown = {each.run for each in turns_to(current)} if current else set()
    entries = []
    for each in conversations(jobs)[:MAX_EARLIER]:
        models = ["blind"] if is_hidden(each.newest, voter) else names_of(each.newest)
        named = [*map(model_name, models)]
        entries.append((each.newest, _short(each.prompt), each.prompts, named))
    return HTML.history(entries, shown, now)


def _short(prompt: str) -> str:
    short = " ".join(prompt.split())
    return short if len(short) <= MAX_PROMPT else f"{short[:MAX_PROMPT]}…"


def ranking() -> Markup:
    found = leaderboard()
    return HTML.leaderboard(found, found.votes < MIN_VOTES)
