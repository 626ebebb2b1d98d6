"""Conversations in .jsonl files: one line, one conversation, in any of the usual forms.

    {"messages": [{"role": "user", "content": …}, …]}                  as of OpenAI
    {"conversations": [{"from": "human", "value": …}, …]}              ShareGPT
    {"instruction": …, "input": …, "output": …}                        Alpaca
    {"prompt": …, "response" or "completion": …}, {"question": …, "answer": …}
    {"turns": [question, …]}                                           MT-Bench, Spec-Bench

Answers may be missing, as in a set of prompts. Imports no torch."""

import codecs
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import DatasetError

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    "human": USER, USER: USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT,
    "bot": ASSISTANT, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM, "developer": SYSTEM,
}  # fmt: skip
CHECKED_BYTES = 1_000_000  # of a text, before a run is queued
LISTS = ("messages", "conversations", "conversation", "turns")
FORMS = (  # field names of prompt, further input, answers
    ("instruction", "input", ("output", "response")),
    ("prompt", "", ("response", "completion")),
    ("question", "", ("answer",)),
)


@dataclass(frozen=True)
class Message:
    """One message; `role` is user, assistant or system (or a tool, as the file calls it)."""

    role: str
    content: str


def conversation(line: Any) -> list[Message]:
    """The messages of a line; empty if it has none of the forms. Raises ValueError: a message is no
    text."""
    if not isinstance(line, Mapping):
        return []
    for name in LISTS:
        if isinstance(line.get(name), list):
            return [each for turn in line[name] if (each := _message(turn)).content]
    for asked, more, answers in FORMS:
        if line.get(asked):
            parts = [_text(line[asked]), _text(line.get(more) or "")]
            prompt = Message(USER, "\n\n".join(filter(None, parts)))
            answer = next((line[name] for name in answers if line.get(name)), None)
            return [prompt] if answer is None else [prompt, Message(ASSISTANT, _text(answer))]
    return []


def _message(turn: Any) -> Message:
    if isinstance(turn, str):
        return Message(USER, turn)
    if not isinstance(turn, Mapping):
        raise ValueError("A message is neither a text nor an object.")
    role = str(turn.get("role") or turn.get("from") or USER)
    return Message(ROLES.get(role, role), _text(turn.get("content", turn.get("value", ""))))


def _text(content: Any) -> str:
    """A content, or the texts of its parts."""
    if isinstance(content, list):
        return "\n".join(_text(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError("A message is no text.")
    return content


def answered(messages: list[Message]) -> tuple[list[Message], str] | None:
    """The messages before the last answer, and that answer; None if there is none."""
    last = next((n for n in reversed(range(len(messages))) if messages[n].role == ASSISTANT), 0)
    return (messages[:last], messages[last].content) if last else None


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line of a .jsonl file that is not blank. Raises ValueError: a line
    is no JSON, or no UTF-8; names it."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"Line {number} of {path.name}: {error}.") from error


def require_readable(path: Path, field: str) -> None:
    """Check the beginning of a local text before a run is queued. Raises DatasetError: it is no
    UTF-8, no JSON, or has neither text nor messages; with `field`."""
    try:
        if path.suffix == ".txt":
            with path.open("rb") as file:
                start = file.read(CHECKED_BYTES)
            whole = len(start) < CHECKED_BYTES
            codecs.getincrementaldecoder("utf-8")().decode(start, final=whole)
        elif not text_of(next(rows(path), (0, {"text": ""}))[1]) and path.stat().st_size:
            raise ValueError(f"The first line of {path.name} has no text.")
    except (OSError, ValueError) as error:
        do = 'Use UTF-8, one JSON object per line, with a field "text" or a conversation.'
        raise DatasetError(
            f"{path.name} could not be read.", str(error)[:300], do, field
        ) from error


def text_of(line: Any) -> str:
    """The text of a line: its field "text", or its messages one after the other. Raises ValueError:
    it has neither."""
    if isinstance(line, Mapping) and isinstance(line.get("text"), str):
        return str(line["text"])
    messages = conversation(line)
    if not messages:
        raise ValueError('a line has neither a string in the field "text" nor a conversation.')
    return "\n\n".join(message.content for message in messages)
