"""What people do with a conversation: go on with it, ask again, vote, delete it."""

from collections.abc import Sequence

from backend.errors import NotFoundError, SlimscopeError
from backend.queue import conversations, permissions
from backend.queue.actor import Actor
from backend.queue.conversations import Turn
from jobs.chat import ask_again, vote
from jobs.fields.models import has_saved
from ui.pages.playground import board
from ui.pages.playground.answers import stop
from ui.runs.results import find_job, kind_of


def shown_turns(text: str) -> list[Turn]:
    """The turns up to the prompt of this number; none where there is no such prompt."""
    try:
        return conversations.turns_to(int(text[:9])) if text.isdecimal() else []
    except SlimscopeError:
        return []


def absent(names: Sequence[str]) -> list[str]:
    """Those of these models that are runs without weights on this machine."""
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
    elif (choice := action.removeprefix(board.VOTE)) in map(str, board.choices(turn)):
        vote(turn.number, int(choice), actor)
    else:
        raise NotFoundError("Nothing was done.", f"There is nothing called {action[:40]!r}.")
    return ""
