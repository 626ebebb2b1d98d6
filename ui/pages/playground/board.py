"""A conversation, the votes for its answers, and the conversations before it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from backend.backup.examples import PACKAGE
from backend.queue import permissions
from backend.queue.actor import Actor
from backend.queue.conversations import BAD, TIE, PastConversation, Turn
from jobs.chat import display_order, is_hidden, would_repeat
from jobs.serving.transcript import transcript_of
from ui.format import threads
from ui.pages.playground.answers import (
    HTML,
    LETTERS,
    Answer,
    chat_answers,
    heads_of,
    is_written,
    may_not_begin,
)
from ui.pages.playground.token_strip import tints
from ui.runs.html import model_name

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
    number: int  # of the prompt
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
    together = len(turns[-1].names) > 1 and not _is_recorded(turns[-1])
    legend = HTML.legend(tints(heads) if heads else [], together, how)
    return HTML.conversation(shown, legend)


def _foot(turn: Turn, actor: Actor) -> Markup:
    return HTML.turn_foot(
        turn.number,
        bool(turn.unanswered) and (is_written(turn) or not may_not_begin(turn, actor)),
        permissions.may_not_cancel(actor, turn.prompt.author),
        permissions.may_not_ask(actor),
        would_repeat(turn),
        actor.role == "host",
        _is_recorded(turn),
    )


def _is_recorded(turn: Turn) -> bool:
    """Whether a conversation ships with the package; its models answered one after the other."""
    return turn.conversation.owner == PACKAGE.name


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


def _short(prompt: str) -> str:
    short = " ".join(prompt.split())
    return short if len(short) <= MAX_PROMPT else f"{short[:MAX_PROMPT]}…"
