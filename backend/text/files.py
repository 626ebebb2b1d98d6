"""Local corpora: .txt and .jsonl files, and folders of them, inside SLIMSCOPE_TEXT_DIR only. Also
conversations in .jsonl files. Imports no torch.

A line `# Title`, or ` = Title = ` as in WikiText, starts a new document of a .txt file. Each line
of a .jsonl file is one document: its field "text", or the messages of a conversation. WikiText
(spaces around punctuation, marks ` @-@ `) becomes ordinary prose, which models are trained on.
Perplexities on it cannot be compared with published ones, so `DETOKENIZED` is recorded with the
text.

A conversation is one line in one of the usual forms; answers may be missing, as in a set of
prompts:

    {"messages": [{"role": "user", "content": …}, …]}                  OpenAI
    {"conversations": [{"from": "human", "value": …}, …]}              ShareGPT
    {"instruction": …, "input": …, "output": …}                        Alpaca
    {"prompt": …, "response" or "completion": …}, {"question": …, "answer": …}
    {"turns": [question, …]}                                           MT-Bench, Spec-Bench
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import DatasetError
from backend.files import real_path
from backend.settings import settings

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {
    "human": USER,
    USER: USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    ASSISTANT: ASSISTANT,
    SYSTEM: SYSTEM,
    "developer": SYSTEM,
}
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # JSON escape of half a UTF-16 pair
CHECKED_BYTES = 1_000_000  # beginning of a text, checked before a run is queued
MESSAGE_LISTS = (  # field names
    "messages",
    "conversations",
    "conversation",
    "turns",
)
PROMPT_FORMS = (  # field names of prompt, further input, answer
    ("instruction", "input", ("output", "response")),
    ("prompt", "", ("response", "completion")),
    ("question", "", ("answer",)),
)
DETOKENIZED = "WikiText detokenized"

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r"([(\[]) ", r"\1"),
        (r" ([)\],.;:!?%])", r"\1"),
        (r" '(?=\w)|(?<=s) '(?= )", "'"),
        (r"([$£€]) (?=\d)", r"\1"),
        (r"(?m)^ | $", ""),
    )
)


@dataclass(frozen=True)
class Message:
    """Message of a conversation. `role`: user, assistant, system, or another name from the file."""

    role: str
    content: str


def conversation(line: Any) -> list[Message]:
    """Parse the messages of a line; empty if it is in no known form. Raises ValueError: a message
    is not text."""
    if not isinstance(line, Mapping):
        return []
    for name in MESSAGE_LISTS:
        if isinstance(line.get(name), list):
            return [message for turn in line[name] if (message := _message(turn)).content]
    for question, more, answers in PROMPT_FORMS:
        if line.get(question):
            parts = [_text(line[question]), _text(line.get(more) or "")]
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
    """Return a content that is text, or the joined texts of its parts."""
    if isinstance(content, list):
        return "\n".join(_text(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise ValueError("A message is not text.")
    return content


def split_answer(messages: list[Message]) -> tuple[list[Message], str] | None:
    """Split messages into those before the last answer, and that answer; None if there is none."""
    last = next((n for n in reversed(range(len(messages))) if messages[n].role == ASSISTANT), 0)
    return (messages[:last], messages[last].content) if last else None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each non-blank line of a .jsonl file. Raises ValueError: a line is
    not JSON or not UTF-8; names it."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    value = json.loads(line.decode("utf-8-sig"))
                    if SURROGATE.search(line):  # encoding raises ValueError for half a pair
                        json.dumps(value, ensure_ascii=False).encode()
                    yield number, value
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"Line {number} of {path.name}: {error}.") from error


def require_readable(path: Path, field: str) -> None:
    """Check the beginning of a local text before a run is queued. Raises DatasetError: it is not
    UTF-8, not JSON, or has neither text nor messages; with `field`."""
    try:
        if path.suffix == ".txt":
            with path.open("rb") as file:
                start = file.read(CHECKED_BYTES)
            is_complete = len(start) < CHECKED_BYTES
            codecs.getincrementaldecoder("utf-8")().decode(start, final=is_complete)
        elif not line_text(next(json_lines(path), (0, {"text": ""}))[1]) and path.stat().st_size:
            raise ValueError(f"The first line of {path.name} has no text.")
        else:
            for _ in json_lines(path) if _has_surrogates(path) else ():
                pass
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path.name} could not be read.",
            str(error)[:300],
            'Use UTF-8, one JSON object per line, with a field "text" or a conversation.',
            field,
        ) from error


def _has_surrogates(path: Path) -> bool:
    with path.open("rb") as lines:
        return any(map(SURROGATE.search, lines))


def line_text(line: Any) -> str:
    """Return the text of a line: its field "text", or its messages joined. Raises ValueError: it
    has neither."""
    if isinstance(line, Mapping) and isinstance(line.get("text"), str):
        return str(line["text"])
    messages = conversation(line)
    if not messages:
        raise ValueError('a line has neither a string in the field "text" nor a conversation.')
    return "\n\n".join(message.content for message in messages)


def detokenize(text: str) -> str:
    """Turn WikiText into ordinary prose; titles, `<unk>` and line breaks stay."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


PREFIX = "file:"
_TITLE = re.compile(r"(?m)^(?=# \S| = [^=\n]+ = *$)")


def _root() -> Path | None:
    folder = settings().text_dir
    return real_path(folder) if folder else None


def _is_usable(path: Path, root: Path) -> bool:
    """Return True if `path` is a non-empty file of a supported type inside `root`, with links
    resolved."""
    real = real_path(path)
    if (
        path.name.startswith(".")
        or path.suffix not in (".txt", ".jsonl")
        or not real.is_relative_to(root)
    ):
        return False
    try:
        return real.is_file() and real.stat().st_size > 0
    except OSError:  # a link into a folder without permission
        return False


def corpus_paths(name: str) -> list[Path]:
    """List the files of corpus `file:NAME`, sorted; empty if none is readable."""
    root = _root()
    if root is None or not name:
        return []
    try:
        path = real_path(root / name)
        if not path.is_relative_to(root):
            return []
        files = sorted(path.iterdir()) if path.is_dir() else [root / name]
        return [file for file in files if _is_usable(file, root)]
    except (OSError, ValueError):  # unreadable folder, long name, NUL byte
        return []


def local_names() -> list[str]:
    """List the NAME of every local corpus."""
    root = _root()
    if root is None or not root.is_dir():
        return []
    return [entry.name for entry in sorted(root.iterdir()) if corpus_paths(entry.name)]


def _row_texts(path: Path) -> Iterator[str]:
    """Yield the text of each row: a whole .txt file, or each line of a .jsonl file."""
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8-sig")
        return
    for number, row in json_lines(path):
        try:
            yield line_text(row)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error


def preprocessing(files: list[Path]) -> str:
    """Name of the preprocessing of `documents`, detected in the first row; empty: none."""
    return DETOKENIZED if " @-@ " in next(_row_texts(files[0]), "") else ""


def documents(files: list[Path]) -> Iterator[str]:
    """Yield all documents of the files in order, except blank ones. Raises OSError, ValueError: a
    file cannot be read, is not UTF-8, or a line has no text."""
    prepare = detokenize if preprocessing(files) else str
    for path in files:
        for row in _row_texts(path):
            pieces = _TITLE.split(row) if path.suffix == ".txt" else [row]
            yield from (prepare(piece) for piece in pieces if piece.strip())
