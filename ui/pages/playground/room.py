"""What the room sees on the projector: what the models do now, and the votes on the answers shown,
with a QR code that leads phones to them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.queue.actor import Actor
from backend.queue.conversations import Turn
from jobs.chat import is_hidden
from jobs.serving.client import serving_status
from ui.frame import current_user, query
from ui.pages.playground.actions import shown_turns
from ui.pages.playground.answers import HTML
from ui.pages.playground.board import choices, said

EVERY_S = 1.0


@dataclass(frozen=True)
class OpenVote:
    """The vote on the answers to a prompt: (choice, votes) in the order of the columns, with
    letters for models as long as whoever looks may not know them."""

    number: int
    prompt: str
    tally: list[tuple[str, int]]
    total: int


async def draw_room(request: gr.Request) -> Markup:
    status = await serving_status()
    models: dict[str, dict[str, Any]] = status.get("models", {})
    speed = sum(each["tokens_per_s"] for each in models.values())
    waiting = sum(each["waiting"] for each in models.values())
    turns = shown_turns(query(request, "chat"))
    vote = _open_vote(turns, current_user(request)) if turns else None
    return HTML.room(models, status.get("requests", 0), waiting, speed, vote)


def _open_vote(turns: list[Turn], viewer: Actor) -> OpenVote | None:
    turn = turns[-1]
    if len(turn.names) < 2 or not turn.finished:
        return None
    counted = Counter(turn.votes.values())
    hidden = is_hidden(turns, viewer.name)
    tally = [
        (letter if hidden else said(turn, choice), counted[choice])
        for choice, letter in choices(turn).items()
    ]
    return OpenVote(turn.number, turn.prompt.text, tally, counted.total())
