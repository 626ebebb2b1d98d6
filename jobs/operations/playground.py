"""Operations on playground answers and API keys."""

from typing import Annotated

import typer
from pydantic import Field

from backend.errors import ConflictError
from backend.queue import conversations
from backend.queue.actor import Actor
from jobs import chat as arena
from jobs.operations.registry import Record, operation
from jobs.serving import keys
from jobs.serving.transcript import Transcript, parse_transcript
from jobs.wording import table

Number = Annotated[int, Field(description="Number of a prompt, as in the address of its page.")]
Choice = Annotated[
    int, Field(description="Number of the best answer, from 1; 0: a tie; -1: all are bad.")
]


def _record(model: str, answer: Transcript) -> Record:
    return {
        "model": model,
        "text": answer.text,
        "tokens": len(answer.tokens),
        "end": answer.end,
        "tokens_per_second": answer.speed,
        "tokens_per_step": answer.accepted,
    }


@operation("chat", path="/chats/{number}", tool="")
def chat_answers(number: Number, actor: Actor) -> list[Record]:
    """Return the answers to a playground prompt, one for each model: text, number of tokens, tokens
    per second, accepted tokens per step, and the reason it ended."""
    turns = conversations.turns_to(number)
    if arena.is_hidden(turns, actor.name):
        raise ConflictError(
            "The answers are hidden.",
            "This is a blind comparison: models are named after the vote.",
            "Vote on the playground page.",
        )
    return [
        _record(turns[-1].names[side - 1], parse_transcript(answer.transcript))
        for side, answer in sorted(turns[-1].answers.items())
    ]


@operation("vote", path="/chats/{number}/vote", writes=True, access="guest", tool="")
def vote(number: Number, choice: Choice, actor: Actor) -> list[Record]:
    """Vote for an answer to a playground prompt. Returns the answers with their models."""
    arena.vote(number, choice, actor)
    return chat_answers(number, actor)


def _tokens_text(result: Record) -> str:
    if "key" in result:
        return f"{result['key']}\nThis key is shown only once. Programs send it as API key to /v1."
    rows = ((key["name"], "revoked" if key["revoked_at"] else "valid") for key in result["keys"])
    return table(("key", "state"), rows)


@operation("token", path="", tool="", writes=True, as_text=_tokens_text)
def api_token(
    actor: Actor,
    name: Annotated[str, typer.Argument(help="Name of a new key. Empty: list all keys.")] = "",
    revoke: Annotated[bool, Field(description="Revoke the key with this name.")] = False,
) -> Record:
    """Create an API key, revoke one, or list all. A program with a key uses /v1 as a host."""
    created = {}
    if revoke:
        keys.revoke_key(name, actor)
    elif name:
        created = {"key": keys.create_key(name, actor)}
    fields = ("name", "created_at", "revoked_at")
    return created | {"keys": [{k: getattr(key, k) for k in fields} for key in keys.all_keys()]}
