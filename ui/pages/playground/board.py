"""A conversation, the votes for its answers, and the conversations before it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from backend.evaluation.preferences import Rating, votes_needed, win_probability
from backend.models.layer_names import read_names
from backend.queue import permissions
from backend.queue.actor import Actor
from backend.queue.conversations import BAD, TIE, PastConversation, Turn
from backend.store import queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.chat import MIN_VOTES, Leaderboard, display_order, is_hidden, leaderboard, would_repeat
from jobs.fields.types import DEFAULT_MODEL
from jobs.generate import kind as generate
from jobs.serving.transcript import read_transcript, transcript_of
from ui.format import share, threads
from ui.pages.playground.answers import (
    HTML,
    LETTERS,
    Answer,
    answers_of,
    chat_answers,
    heads_of,
    is_written,
    may_not_begin,
)
from ui.pages.playground.token_strip import tints
from ui.runs.choices import answering
from ui.runs.html import model_name
from ui.runs.results import speed_conditions

VOTE = "vote"  # leads the action of a button that votes; the choice follows
MAX_EARLIER = 30
MAX_PROMPT = 120  # characters of an earlier prompt
TICK, ROOM = 200, 40  # points between ticks, and beside the outermost intervals
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lost dog who finds a friend.",
    "List five ways to save energy at home.",
)


@dataclass(frozen=True)
class ShownTurn:
    number: int  # of the prompt; 0 of a recorded run
    prompt: str
    answers: list[Answer]
    problems: list[str]  # why sides failed
    votes: Markup
    foot: Markup


def conversation(turns: Sequence[Turn], actor: Actor) -> Markup:
    shown, heads, decoders = [], set[int](), dict[str, None]()
    for n, turn in enumerate(turns, 1):
        texts = [transcript_of(each.transcript) for each in turn.answers.values()]
        if not is_hidden(turns[:n], actor.name):
            heads |= heads_of(texts)
            for text in filter(lambda text: text.speed and text.decoder, texts):
                on = f" on {threads(text.threads)}" if text.threads else ""
                decoders[f"{text.decoder} decoder{on}"] = None
        last = n == len(turns)
        below = _foot(turn, actor) if last else Markup()
        problems = [text.error for text in texts if text.error]
        answers = chat_answers(turns[:n], actor)
        votes = _votes(turn, actor, last)
        shown.append(ShownTurn(turn.number, turn.prompt.text, answers, problems, votes, below))
    how = f"Speeds: {'; '.join(decoders)}; prefill excluded." if decoders else ""
    legend = HTML.legend(tints(heads) if heads else [], len(turns[-1].names) > 1, how)
    return HTML.conversation(shown, legend)


def recorded_run(job: Job) -> Markup:
    """The answers that a run recorded, as a conversation that is over."""
    names = read_names(str(job.config.get("sides", "")))
    texts = {n: read_transcript(job.run, n) for n in range(1, len(names) + 1)}
    answers = answers_of(names, [*texts], False, texts)
    heads = heads_of([*texts.values()])
    prompt, foot = str(job.config.get("prompt", "")), HTML.recorded(job)
    shown = ShownTurn(0, prompt, answers, [], Markup(), foot)
    conditions = speed_conditions(job, queries.results([job.id]))
    return HTML.conversation([shown], HTML.legend(tints(heads) if heads else [], False, conditions))


def _foot(turn: Turn, actor: Actor) -> Markup:
    return HTML.turn_foot(
        turn.number,
        bool(turn.unanswered) and (is_written(turn) or not may_not_begin(turn, actor)),
        permissions.may_not_cancel(actor, turn.prompt.author),
        permissions.may_not_ask(actor),
        would_repeat(turn),
        actor.role == "host",
    )


def choices(turn: Turn) -> dict[int, str]:
    sides, two = display_order(turn), len(turn.names) == 2
    better = "better" if two else "best"
    letters = zip(sides, LETTERS, strict=False)
    first, *others = [(side, f"{letter} is {better}") for side, letter in letters]
    both = [(TIE, "Tie"), (BAD, "Both are bad" if two else "All are bad")]
    return dict([first, *both, *others] if two else [first, *others, *both])


def _votes(turn: Turn, actor: Actor, last: bool) -> Markup:
    if len(turn.names) < 2 or not turn.finished:
        return Markup()
    votes = turn.votes
    if actor.name not in votes:
        if not last:
            return Markup()
        may_not = permissions.may_not_ask(actor)
        return HTML.vote_buttons(turn.number, [*choices(turn).items()], may_not)
    counted = Counter(votes.values())
    tally = [(said(turn, choice), count) for choice, count in counted.most_common()]
    return HTML.voted(said(turn, votes[actor.name]), tally if len(votes) > 1 else [])


def said(turn: Turn, choice: int) -> str:
    names = turn.names
    if not 1 <= choice <= len(names):
        return choices(turn).get(choice, "").lower()
    return f"{names[choice - 1]} is {'better' if len(names) == 2 else 'best'}"


def history(past: Sequence[PastConversation], current: int, voter: str, now: int) -> Markup:
    """`current`: number of the conversation that is shown, 0 for none."""
    entries = []
    for each in past:
        blind = each.conversation.blind and voter not in each.voters
        models = ["blind"] if blind else each.conversation.sides
        here = each.conversation.id == current
        named = [*map(model_name, models)]
        entries.append((each.newest, here, _short(each.first), each.prompts, named))
    return HTML.history(entries, now)


def recorded_last() -> str:
    """The newest run that recorded answers; empty where there is none."""
    found = queries.jobs([State.SUCCEEDED], generate.NAME, limit=1)
    return found[0].run if found else ""


def _short(prompt: str) -> str:
    short = " ".join(prompt.split())
    return short if len(short) <= MAX_PROMPT else f"{short[:MAX_PROMPT]}…"


def ranking() -> Markup:
    found, able = leaderboard(), [name for _, name in answering()]
    rated = found.ratings
    low = min([each.low for each in rated], default=0) - ROOM
    high = max([each.high for each in rated], default=0) + ROOM

    def place(points: float) -> float:
        return 100 * (points - low) / (high - low)

    ticks = [(n, place(n)) for n in range(math.ceil(low / TICK) * TICK, round(high), TICK)]
    rows = [(x, place(x.low), place(x.high) - place(x.low), place(x.score)) for x in rated]
    pair = _closest(rated, able)
    needed = [(wins, votes_needed(wins / 10)) for wins in (8, 6)]
    return HTML.leaderboard(found, _leader(found), rows, ticks, pair, needed)


def _leader(board: Leaderboard) -> str:
    """What the votes say of the first two."""
    if not board.ratings:
        return "No blind votes yet"
    first, second = board.ratings[:2]
    if board.votes < MIN_VOTES or first.low <= second.high:
        many = f"{board.votes} blind vote{'' if board.votes == 1 else 's'}"
        return f"{first.name} is ahead; {many}: too few to tell it from {second.name}"
    wins = share(win_probability(first, second), 0)
    return f"{first.name} leads: it is preferred to {second.name} in {wins} of comparisons"


def _closest(rated: Sequence[Rating], able: Sequence[str]) -> list[str]:
    """Two models to compare next: neighbours of the ranking that can answer, whose ratings are
    nearest; without such, the default one and what was made last."""
    there = [each for each in rated if each.name in able]
    if len(there) > 1:
        return [
            x.name for x in min(pairwise(there), key=lambda pair: pair[0].score - pair[1].score)
        ]
    return [DEFAULT_MODEL, next((name for name in able[::-1] if name != DEFAULT_MODEL), "")]
