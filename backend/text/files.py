"""Local corpora: .txt and .jsonl files, and folders of them, under SLIMSCOPE_TEXT_DIR only.

A line `# Title`, or ` = Title = ` as in WikiText, starts a new document of a .txt file. Each line
of a .jsonl file is one: its field "text", or the messages of a conversation. WikiText (spaces
around punctuation, marks ` @-@ `) becomes ordinary prose, which models are trained on: perplexities
on it cannot be compared with published ones, so `DETOKENISED` is recorded with the text."""

import re
from collections.abc import Iterator
from pathlib import Path

from backend.paths import real_path
from backend.settings import settings
from backend.text import conversations

DETOKENISED = "WikiText detokenised"
MARK = " @-@ "

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


def detokenise(text: str) -> str:
    """The text as ordinary prose; titles, `<unk>` and line breaks are kept."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


PREFIX = "file:"
SUFFIXES = (".txt", ".jsonl")
_TITLE = re.compile(r"(?m)^(?=# \S| = [^=\n]+ = *$)")


def _root() -> Path | None:
    folder = settings().text_dir
    return real_path(folder) if folder else None


def _usable(path: Path, root: Path) -> bool:
    """Whether `path` is a non-empty file of a supported type inside `root`, links resolved."""
    real = real_path(path)
    if path.name.startswith(".") or path.suffix not in SUFFIXES or not real.is_relative_to(root):
        return False
    try:
        return real.is_file() and real.stat().st_size > 0
    except OSError:  # a link into a folder that may not be entered
        return False


def paths(name: str) -> list[Path]:
    """The files of corpus `file:NAME`, sorted; empty if there is no readable one."""
    root = _root()
    if root is None or not name:
        return []
    try:
        place = real_path(root / name)
        if not place.is_relative_to(root):
            return []
        files = sorted(place.iterdir()) if place.is_dir() else [root / name]
        return [file for file in files if _usable(file, root)]
    except (OSError, ValueError):  # unreadable folder, name too long, NUL byte
        return []


def names() -> list[str]:
    """NAME of every local corpus."""
    root = _root()
    if root is None or not root.is_dir():
        return []
    return [entry.name for entry in sorted(root.iterdir()) if paths(entry.name)]


def _rows(path: Path) -> Iterator[str]:
    """The text of each row: a whole .txt file, or a line of a .jsonl file."""
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8-sig")
        return
    for number, row in conversations.rows(path):
        try:
            yield conversations.text_of(row)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error


def preprocessing(files: list[Path]) -> str:
    """Name of the preprocessing of `documents`, detected in the first row; empty: none."""
    return DETOKENISED if MARK in next(_rows(files[0]), "") else ""


def documents(files: list[Path]) -> Iterator[str]:
    """All documents of the files in order, none of them blank. Raises OSError, ValueError: a file
    cannot be read, is not UTF-8, or a line has no text."""
    prepare = detokenise if preprocessing(files) else str
    for path in files:
        for row in _rows(path):
            pieces = _TITLE.split(row) if path.suffix == ".txt" else [row]
            yield from (prepare(piece) for piece in pieces if piece.strip())
