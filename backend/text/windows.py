"""Windows of token ids cut out of documents: short ones are joined with the end-of-text token into
rows of at least one window. If the tokenizer prepends a beginning-of-text token, every window has
one.

Special tokens spelt out in a text, such as WikiText's `<unk>`, are read as what they are there:
plain text. A model that meets the token instead has a loss that tells nothing of its text."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from random import Random

from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 10_000  # size of the shuffle buffer, in documents
_PIECE = re.compile(r"(?s).{1,1000000}(?:\n\n|\Z)|.{1,1000000}")  # bounds the tokenizer's memory


def prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token if the tokenizer prepends it, else nothing."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a").input_ids[0] == begin else []


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The ids of each document, without special tokens."""
    for text in texts:
        pieces = _PIECE.findall(text)
        yield [token for piece in pieces for token in plain_ids(piece, tokenizer)]


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text, none of them a special token."""
    return list(
        tokenizer(
            text, add_special_tokens=False, verbose=False, split_special_tokens=True
        ).input_ids
    )


def literals(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the texts spell out, and how often: "<unk> 12 times"."""
    whole = "\n".join(texts)
    counts = {token: whole.count(token) for token in dict.fromkeys(tokenizer.all_special_tokens)}
    return ", ".join(f"{token} {n} times" for token, n in counts.items() if n)


def _rows(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[list[int]]:
    """Join documents into rows of at least `length` tokens; a shorter rest is dropped."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    row: list[int] = []
    for ids in encoded(texts, tokenizer):
        row += end + ids if row else ids
        if len(row) >= length:
            yield row
            row = []


def cut_windows(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    offset: Callable[[int], int],
) -> Iterator[list[int]]:
    """All whole windows of `context` ids of every row, starting at `offset(slack)` <= slack."""
    begin = prefix(tokenizer)
    length = context - len(begin)
    for row in _rows(texts, tokenizer, length):
        for start in range(offset(len(row) % length), len(row) - length + 1, length):
            yield begin + row[start : start + length]


def shuffled(texts: Iterable[str], random: Random) -> Iterator[str]:
    """Shuffle documents in buffers of `SHUFFLE_BUFFER`, so that streams can be read."""
    texts = iter(texts)
    while buffer := list(islice(texts, SHUFFLE_BUFFER)):
        random.shuffle(buffer)
        yield from buffer
