"""Conversations of the playground: prompts, answers, and one vote of each person per prompt.

A prompt that is asked again is a sibling of the first one, so that the messages form a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, undefer

from backend.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError
from backend.queue.actor import Actor, network_of
from backend.queue.gate import ADDRESS_FACTOR, in_room
from backend.queue.permissions import ASK, require_host, require_voting
from backend.store.session import fetched_value, now_ms, reading, writing
from backend.store.tables import Conversation, MessageRow

TIE, BAD = 0, -1  # votes for no side
MAX_TURNS = 50


@dataclass(frozen=True)
class Turn:
    """A prompt with its answers by side, from 1."""

    conversation: Conversation
    prompt: MessageRow
    answers: dict[int, MessageRow]

    @property
    def number(self) -> int:
        """The id of the prompt."""
        return self.prompt.id

    @property
    def names(self) -> list[str]:
        """Models and drafters by side."""
        return self.conversation.sides

    @property
    def votes(self) -> dict[str, int]:
        """Votes by voter."""
        return {voter: int(choice) for voter, (choice, _) in self.prompt.votes.items()}

    @property
    def finished(self) -> bool:
        """True if all sides have answered, and none failed or was stopped."""
        answers = [answer for answer in self.answers.values() if answer.transcript]
        ends = [answer.transcript[-1].get("end") for answer in answers]
        return len(ends) == len(self.names) and not {"error", "cancelled"} & {*ends}

    @property
    def unanswered(self) -> list[int]:
        """Sides without an answer."""
        return [n for n in range(1, len(self.names) + 1) if n not in self.answers]


def turns_to(number: int) -> list[Turn]:
    """The turns of a conversation up to a prompt, oldest first.

    Raises:
        NotFoundError: there is no such prompt.
    """
    with reading() as session:
        prompt = session.get(MessageRow, number)
        if prompt is None or prompt.side:
            raise NotFoundError("There is no such conversation.", f"No prompt has number {number}.")
        conversation = session.get_one(Conversation, prompt.conversation_id)
        query = select(MessageRow).where(MessageRow.conversation_id == conversation.id)
        rows = session.scalars(
            query.order_by(MessageRow.id).options(undefer(MessageRow.transcript))
        )
        messages = {message.id: message for message in rows}
    answers: dict[int, dict[int, MessageRow]] = {}
    for message in messages.values():
        if message.side and message.parent:
            answers.setdefault(message.parent, {})[message.side] = message
    path = [messages[number]]
    while path[0].parent:
        path.insert(0, messages[path[0].parent])
    return [Turn(conversation, prompt, answers.get(prompt.id, {})) for prompt in path]


def turn(number: int) -> Turn:
    """The turn of a prompt.

    Raises:
        NotFoundError: there is no such prompt.
    """
    return turns_to(number)[-1]


def first_turn(owner: str) -> Turn | None:
    """The first turn of the conversations that `owner` began; None without one."""
    prompts = select(MessageRow.id).join(
        Conversation, Conversation.id == MessageRow.conversation_id
    )
    of_owner = prompts.where(Conversation.owner == owner, MessageRow.side.is_(None))
    number = fetched_value(of_owner.order_by(MessageRow.id).limit(1))
    return turn(number) if number else None


def begin(sides: Sequence[str], blind: bool, actor: Actor, session: Session) -> Conversation:
    """Begin a conversation.

    Args:
        sides: models and drafters that answer.
        blind: hide their names until the vote.
    """
    conversation = Conversation(
        owner=actor.signature, sides=[*sides], blind=blind, created_at=now_ms()
    )
    session.add(conversation)
    session.flush()
    return conversation


def add_prompt(
    session: Session,
    conversation: int,
    after: int | None,
    text: str,
    settings: dict[str, Any],
    author: str,
) -> MessageRow:
    """Add a prompt to a conversation; `after`: id of the prompt that it follows, None for none."""
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
    """Store the answer of a side to a prompt."""
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
    """A conversation in a list.

    Attributes:
        conversation: the conversation.
        newest: newest prompt.
        first: text of the first prompt.
        prompts: number of prompts.
        voters: everyone who has voted in it.
    """

    conversation: Conversation
    newest: MessageRow
    first: str
    prompts: int
    voters: set[str]


def newest_conversations(limit: int) -> list[PastConversation]:
    """The conversations with the newest prompts, newest first."""
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
        conversations = []
        for row in session.execute(ends):
            in_conversation = prompts.where(MessageRow.conversation_id == row.conversation_id)
            by_id = {prompt.id: prompt for prompt in session.scalars(in_conversation)}
            conversation = session.get_one(Conversation, row.conversation_id)
            newest, first = by_id[row.newest], by_id[row.first].text
            voters = {voter for prompt in by_id.values() for voter in prompt.votes}
            past = PastConversation(conversation, newest, first, len(by_id), voters)
            conversations.append(past)
        return conversations


def remove(number: int, actor: Actor) -> None:
    """Delete the conversation of a prompt with its votes."""
    require_host(actor, "delete a conversation")
    conversation = turn(number).conversation.id
    with writing(durable=True) as session:
        session.execute(delete(Conversation).where(Conversation.id == conversation))


def cast(number: int, choice: int, blind: bool, actor: Actor) -> None:
    """Store a vote on the answers to a prompt.

    Args:
        number: id of the prompt.
        choice: number of the best side, `TIE`, or `BAD`.
        blind: the voter does not know the models.

    Raises:
        ForbiddenError: the actor may not vote.
        RateLimitError: the actor votes too often.
        ConfigError: there is no such choice.
        NotFoundError: there is no such prompt.
        ConflictError: the answers are not finished, or this person has voted.
    """
    require_voting(actor)
    network = network_of(actor.name)
    target, what = turn(number), "The vote was not saved."
    sides = len(target.names)
    if sides < 2 or choice not in (BAD, TIE, *range(1, sides + 1)):
        raise ConfigError(what, "There is no such answer.")
    if not target.finished:
        raise ConflictError(what, "The answers are not finished.")
    with writing(durable=True) as session:
        prompt = session.get_one(MessageRow, number, with_for_update=True)
        if actor.name in prompt.votes:
            raise ConflictError(what, "You have voted on these answers before.")
        neighbors = sum(network_of(voter) == network for voter in prompt.votes)
        if actor.role == "guest" and not in_room(actor.client) and neighbors >= ADDRESS_FACTOR:
            raise ForbiddenError(
                what,
                f"{neighbors} visitors at your network address have voted on these answers.",
                ASK,
            )
        prompt.votes = prompt.votes | {actor.name: [choice, blind]}
