"""Operations on the answers of the playground, and on the keys of programs."""

from typing import Annotated

import typer
from pydantic import Field

from backend.errors import ConflictError
from backend.queue import conversations
from backend.queue.actor import Actor
from jobs import chat as arena
from jobs.operations.registry import Record, operation
from jobs.serving import keys
from jobs.serving.transcript import Transcript, transcript_of
from jobs.wording import table

Number = Annotated[int, Field(description="A prompt, by the number in the address of its page.")]
Choice = Annotated[int, Field(description="The better answer, from 1; 0: a tie; -1: all bad.")]


def _record(model: str, text: Transcript) -> Record:
    return {
        "model": model,
        "text": text.text,
        "tokens": len(text.tokens),
        "end": text.end,
        "tokens_per_second": text.speed,
        "tokens_per_step": text.accepted,
    }


@operation("chat", path="/chats/{number}", tool="")
def chat_answers(number: Number, actor: Actor) -> list[Record]:
    """The answers to a prompt of the playground, one for each model: text, number of tokens, tokens
    per second, accepted tokens per step, and how it ended."""
    turns = conversations.turns_to(number)
    if arena.is_hidden(turns, actor.name):
        raise ConflictError(
            "The answers are hidden.",
            "Who votes blind must not know which model wrote what.",
            "Vote on the page of the playground.",
        )
    return [
        _record(turns[-1].names[side - 1], transcript_of(answer.transcript))
        for side, answer in sorted(turns[-1].answers.items())
    ]


@operation("vote", path="/chats/{number}/vote", writes=True, who="guest", tool="")
def vote(number: Number, choice: Choice, actor: Actor) -> list[Record]:
    """Vote for an answer to a prompt of the playground. Answers with the texts and their models."""
    arena.vote(number, choice, actor)
    return chat_answers(number, actor)


def _tokens_text(found: Record) -> str:
    if "key" in found:
        return f"{found['key']}\nIt is shown this once. Programs send it as their API key to /v1."
    rows = ((k["name"], "revoked" if k["revoked_at"] else "valid") for k in found["keys"])
    return table(("key", "state"), rows)


@operation("token", path="", tool="", writes=True, said=_tokens_text)
def api_token(
    actor: Actor,
    name: Annotated[str, typer.Argument(help="Of a new key; empty: list all.")] = "",
    revoke: Annotated[bool, Field(description="Revoke the key of that name.")] = False,
) -> Record:
    """Make an API key, with which a program uses /v1 as a host; revoke one, or list them."""
    made = {}
    if revoke:
        keys.revoke_key(name, actor)
    elif name:
        made = {"key": keys.create_key(name, actor)}
    known = ("name", "created_at", "revoked_at")
    return made | {"keys": [{k: getattr(each, k) for k in known} for each in keys.all_keys()]}
