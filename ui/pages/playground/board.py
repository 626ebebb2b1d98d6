"""A conversation with the votes on its answers, earlier conversations, and the actions on them:
continue, regenerate, vote, delete."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from markupsafe import Markup

from backend.backup.examples import PACKAGE
from backend.errors import NotFoundError, SlimscopeError
from backend.queue import conversations, permissions
from backend.queue.actor import Actor
from backend.queue.conversations import BAD, TIE, PastConversation, Turn
from jobs.chat import ask_again, display_order, is_hidden, vote, would_repeat
from jobs.fields.models import has_saved
from jobs.serving.transcript import parse_transcript
from ui.pages.playground.answers import (
    HTML,
    LETTERS,
    Answer,
    chat_answers,
    heads_of,
    is_written,
    may_not_begin,
    stop,
    tints,
)
from ui.runs.html import model_name
from ui.runs.results import find_job, kind_of

UNEQUAL = "Do not compare these speeds: the answers used different numbers of CPU threads."
Z95 = 1.96  # standard deviations of a 95 % interval
MAX_PROMPT = 120  # characters of an earlier prompt
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lost dog who finds a friend.",
    "List five ways to save energy at home.",
)


@dataclass(frozen=True)
class ShownTurn:
    number: int  # number of the prompt
    prompt: str
    answers: list[Answer]
    problems: list[str]  # reasons why sides failed
    votes: Markup


def conversation(turns: Sequence[Turn], actor: Actor) -> Markup:
    shown, heads, decoders, is_unequal = [], set[int](), dict[str, None](), False
    for n, turn in enumerate(turns, 1):
        texts = [parse_transcript(each.transcript) for each in turn.answers.values()]
        if not is_hidden(turns[:n], actor.name):
            heads |= heads_of(texts)
            decoders |= {f"{t.decoder} decoder": None for t in texts if t.speed and t.decoder}
            is_unequal |= len({text.threads for text in texts if text.speed}) > 1
        last = n == len(turns)
        problems = [text.error for text in texts if text.error]
        answers = chat_answers(turns[:n], actor)
        votes = _votes(turn, actor, last)
        shown.append(ShownTurn(turn.number, turn.prompt.text, answers, problems, votes))
    # the models of the example answered one after the other
    recorded = turn.conversation.owner == PACKAGE.name
    foot = HTML.turn_foot(
        turn.number,
        bool(turn.unanswered) and (is_written(turn) or not may_not_begin(turn, actor)),
        permissions.may_not_cancel(actor, turn.prompt.author),
        permissions.may_not_ask(actor),
        would_repeat(turn),
        actor.role == "host",
        recorded,
    )
    how = f"Speeds: {'; '.join(decoders)}; prefill excluded." if decoders else ""
    how += f" {UNEQUAL}" if is_unequal else ""
    together = len(turn.names) > 1 and not recorded
    legend = HTML.legend(tints(heads) if heads else [], together, how)
    return HTML.conversation(shown, foot, legend)


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
    """Earlier conversations. `current`: number of the shown conversation, 0 for none."""
    entries = []
    for each in past:
        blind = each.conversation.blind and voter not in each.voters
        models = ["blind"] if blind else each.conversation.sides
        here = each.conversation.id == current
        named = [*map(model_name, models)]
        first = " ".join(each.first.split())
        if len(first) > MAX_PROMPT:
            first = f"{first[:MAX_PROMPT]}…"
        entries.append((each.newest, here, first, each.prompts, named))
    return HTML.history(entries, now)


def shown_turns(text: str) -> list[Turn]:
    """The turns up to the prompt with this number; empty if there is no such prompt."""
    try:
        return conversations.turns_to(int(text[:9])) if text.isdecimal() else []
    except SlimscopeError:
        return []


def absent(names: Sequence[str]) -> list[str]:
    """The models among these that are runs without weights on this machine."""
    found = {name: job for name in names if (job := find_job(name))}
    kinds = {name: kind_of(job) for name, job in found.items()}
    return [n for n, kind in kinds.items() if kind and not has_saved(found[n], kind.saves)]


def carry_out(action: str, number: str, actor: Actor) -> str:
    """Does it; the number of the prompt that is to be shown then, "" for the same."""
    turns = shown_turns(number)
    if not turns:
        raise NotFoundError("Nothing was done.", "There are no such answers.")
    turn = turns[-1]
    if action == "again":
        return str(ask_again(turn.number, actor))
    if action == "stop":
        permissions.require_cancelling(actor, [turn.prompt.author])
        stop(turn)
    elif action == "delete":
        conversations.remove(turn.number, actor)
    elif (choice := action.removeprefix("vote")) in map(str, choices(turn)):
        vote(turn.number, int(choice), actor)
    else:
        raise NotFoundError("Nothing was done.", f"There is nothing called {action[:40]!r}.")
    return ""


def votes_drawer(turns: Sequence[Turn], voter: str) -> Markup:
    """The votes on the last turn; empty if votes are not possible. Models are letters while they
    are hidden from `voter`."""
    if not turns or len(turns[-1].names) < 2 or not turns[-1].finished:
        return Markup()
    turn, hidden = turns[-1], is_hidden(turns, voter)
    counted = Counter(turn.votes.values())
    tally = [
        (letter if hidden else said(turn, choice), counted[choice], counted.total())
        for choice, letter in choices(turn).items()
    ]
    bars = [(label, count, *vote_interval(count, total)) for label, count, total in tally]
    return HTML.votes(turn.number, bars, counted.total())


def vote_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share of a choice; (0, 1) without votes."""
    if not total:
        return 0.0, 1.0
    share, spread = count / total, Z95**2 / total
    center, half = share + spread / 2, sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread))
