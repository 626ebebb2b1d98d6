"""Conversations of the playground: prompts, the answers to them, and one vote of each person on the
answers to a prompt. A prompt that is asked again is another one beside the first, so that the
messages form a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, undefer

from backend.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError
from backend.queue.actor import Actor, network_of
from backend.queue.gate import ADDRESS_FACTOR, in_room
from backend.queue.permissions import ASK, require_host, require_voting
from backend.store.session import now_ms, reading, writing
from backend.store.tables import Conversation, MessageRow

TIE, BAD = 0, -1  # choices that are no side
MAX_TURNS = 50


@dataclass(frozen=True)
class Turn:
    """A prompt, and the answers to it by side, from 1."""

    conversation: Conversation
    prompt: MessageRow
    answers: dict[int, MessageRow]

    @property
    def number(self) -> int:
        return self.prompt.id

    @property
    def names(self) -> list[str]:
        """Its models and drafters."""
        return self.conversation.sides

    @property
    def votes(self) -> dict[str, int]:
        """Voter -> choice."""
        return {voter: int(choice) for voter, (choice, _) in self.prompt.votes.items()}

    @property
    def finished(self) -> bool:
        """Whether all sides have answered, and none failed or was stopped."""
        ends = [each.transcript[-1].get("end") for each in self.answers.values() if each.transcript]
        return len(ends) == len(self.names) and not {"error", "cancelled"} & {*ends}

    @property
    def unanswered(self) -> list[int]:
        return [n for n in range(1, len(self.names) + 1) if n not in self.answers]


def turns_to(number: int) -> list[Turn]:
    """The turns up to a prompt, the first first; `NotFoundError` if there is none."""
    with reading() as session:
        prompt = session.get(MessageRow, number)
        if prompt is None or prompt.side:
            raise NotFoundError("There is no such conversation.", f"No prompt has number {number}.")
        conversation = session.get_one(Conversation, prompt.conversation_id)
        query = select(MessageRow).where(MessageRow.conversation_id == conversation.id)
        every = session.scalars(
            query.order_by(MessageRow.id).options(undefer(MessageRow.transcript))
        )
        messages = {message.id: message for message in every}
    answers: dict[int, dict[int, MessageRow]] = {}
    for message in messages.values():
        if message.side and message.parent:
            answers.setdefault(message.parent, {})[message.side] = message
    path = [messages[number]]
    while path[0].parent:
        path.insert(0, messages[path[0].parent])
    return [Turn(conversation, each, answers.get(each.id, {})) for each in path]


def turn(number: int) -> Turn:
    """The last of `turns_to`."""
    return turns_to(number)[-1]


def first_turn(owner: str) -> Turn | None:
    """The first prompt in conversations that `owner` began; None without one."""
    prompts = select(MessageRow.id).join(
        Conversation, Conversation.id == MessageRow.conversation_id
    )
    begun = prompts.where(Conversation.owner == owner, MessageRow.side.is_(None))
    with reading() as session:
        number = session.scalar(begun.order_by(MessageRow.id).limit(1))
    return turn(number) if number else None


def begin(sides: Sequence[str], blind: bool, actor: Actor, session: Session) -> Conversation:
    begun = Conversation(owner=actor.signature, sides=[*sides], blind=blind, created_at=now_ms())
    session.add(begun)
    session.flush()
    return begun


def add_prompt(
    session: Session,
    conversation: int,
    after: int | None,
    text: str,
    settings: dict[str, Any],
    author: str,
) -> MessageRow:
    """A new prompt; `after`: the prompt it follows."""
    prompt = MessageRow(
        conversation_id=conversation,
        parent=after,
        author=author,
        text=text,
        at=now_ms(),
        settings=settings,
        votes={},
    )
    session.add(prompt)
    session.flush()
    return prompt


def save_answer(
    prompt: MessageRow, side: int, text: str, transcript: Sequence[Any], session: Session
) -> None:
    session.add(
        MessageRow(
            conversation_id=prompt.conversation_id,
            parent=prompt.id,
            side=side,
            author="",
            text=text,
            at=now_ms(),
            settings={},
            transcript=[*transcript],
            votes={},
        )
    )
    session.flush()


@dataclass(frozen=True)
class PastConversation:
    """A conversation as a list shows it: its newest and its first prompt, how many it has, and who
    has voted in it."""

    conversation: Conversation
    newest: MessageRow
    first: str
    prompts: int
    voters: set[str]


def newest_conversations(limit: int) -> list[PastConversation]:
    """Those with the newest prompts, the newest first."""
    ends = (
        select(
            MessageRow.conversation_id,
            func.max(MessageRow.id).label("newest"),
            func.min(MessageRow.id).label("first"),
        )
        .where(MessageRow.side.is_(None))
        .group_by(MessageRow.conversation_id)
        .order_by(func.max(MessageRow.id).desc())
        .limit(limit)
    )
    prompts = select(MessageRow).where(MessageRow.side.is_(None))
    with reading() as session:
        found = []
        for row in session.execute(ends):
            here = prompts.where(MessageRow.conversation_id == row.conversation_id)
            every = {each.id: each for each in session.scalars(here)}
            conversation = session.get_one(Conversation, row.conversation_id)
            newest, first = every[row.newest], every[row.first].text
            voters = {voter for each in every.values() for voter in each.votes}
            found.append(PastConversation(conversation, newest, first, len(every), voters))
        return found


def remove(number: int, actor: Actor) -> None:
    """Delete the conversation of a prompt, with its votes."""
    require_host(actor, "delete a conversation")
    conversation = turn(number).conversation.id
    with writing(durable=True) as session:
        session.execute(delete(Conversation).where(Conversation.id == conversation))


# votes --------------------------------------------------------------------------------------------


def cast(number: int, choice: int, blind: bool, actor: Actor) -> None:
    """Store a vote on the answers to a prompt.

    Args:
        blind: whether the voter does not know the models.

    Raises:
        ForbiddenError, RateLimitError: the actor may not vote, or not so often.
        ConfigError: there is no such choice; NotFoundError: no such prompt.
        ConflictError: it is not answered, or this person has voted.
    """
    require_voting(actor)
    from_here = network_of(actor.name)
    voted, what = turn(number), "The vote was not saved."
    sides = len(voted.names)
    if sides < 2 or choice not in (BAD, TIE, *range(1, sides + 1)):
        raise ConfigError(what, "There is no such answer.")
    if not voted.finished:
        raise ConflictError(what, "The answers are not finished.")
    with writing(durable=True) as session:
        prompt = session.get_one(MessageRow, number, with_for_update=True)
        if actor.name in prompt.votes:
            raise ConflictError(what, "You have voted on these answers before.")
        neighbors = sum(network_of(voter) == from_here for voter in prompt.votes)
        if actor.role == "guest" and not in_room(actor.client) and neighbors >= ADDRESS_FACTOR:
            raise ForbiddenError(
                what,
                f"{neighbors} visitors at your network address have voted on these answers.",
                ASK,
            )
        prompt.votes = prompt.votes | {actor.name: [choice, blind]}
