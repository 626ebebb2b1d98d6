"""Training rows and their labels, the same on every machine.

- plain text: random windows as for calibration; the loss covers every token;
- instructions, of a .jsonl file of conversations with answers: the loss covers the answer only.
  Examples are packed into rows: one that does not fit starts a new row, one longer than a row is
  truncated. Rows are padded at the end, where causal attention ignores the padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backend.errors import DatasetError, ModelError
from backend.text import files
from backend.text.chat_template import render_chat
from backend.text.corpora import documents
from backend.text.files import Message, answered, conversation, rows
from backend.text.slices import (
    SHUFFLE_BUFFER,
    TextSlice,
    apart_from,
    cut_windows,
    plain_ids,
    prefix,
    shuffled,
    slice_of,
)

IGNORED_LABEL = -100  # label of tokens without a loss, as in torch and transformers
FIELD = "training_text"
Example = tuple[list[int], list[int]]  # ids, labels


@dataclass(frozen=True)
class TrainingSet:
    """The rows a model is trained on."""

    text: TextSlice  # the rows, as tokens
    labels: Tensor  # [n, L] int64: the tokens, or `IGNORED_LABEL` for those without a loss
    form: str  # "text" or "instructions"


def training_set(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: int,
    least: int = 1,
    shared: bool = True,
    apart: Sequence[Tensor] = (),
) -> TrainingSet:
    """At most `count` rows of `length` tokens; fewer if the text is shorter. `least`: minimum
    number of rows. `shared`: whether evaluation uses the same corpus. `apart`: rows [n, L] that
    plain text shares no passage with. Raises DatasetError: no such text, not readable, or too
    short."""
    if path := _instructions(corpus):
        examples = _examples(path, tokenizer, length, Random(seed))
        packed = list(islice(_packed(examples, tokenizer, length), count))
        ids, labels = (torch.tensor([row[part] for row in packed]) for part in (0, 1))
    else:
        random = Random(seed)
        texts = shuffled(documents(corpus, "calibration", shared), random)
        windows = cut_windows(texts, tokenizer, length, lambda slack: random.randint(0, slack))
        for rows_of_others in apart:
            windows = apart_from(rows_of_others, windows, length)
        ids = torch.tensor(list(islice(windows, count)))
        labels = ids
    if len(ids) < least:
        raise DatasetError(
            f"{corpus} has too little text to train on.",
            f"It gives {len(ids)} rows of {length} tokens; {least} are needed."
            + (" Examples whose prompt alone fills a row are skipped." if path else ""),
            ("Raise" if path else "Lower")
            + " the sequence length, lower the batch size, or choose a longer text.",
            FIELD,
        )
    begins, done = bool(prefix(tokenizer)), "" if path else None
    text = slice_of(ids, tokenizer, corpus, "calibration", seed, begins, done)
    return TrainingSet(text, labels, "instructions" if path else "text")


def _instructions(corpus: str) -> Path | None:
    """The file of a corpus of instructions with answers; None for plain text."""
    if not corpus.startswith(files.PREFIX) or not corpus.endswith(".jsonl"):
        return None
    for path in files.paths(corpus.removeprefix(files.PREFIX)):
        return path if answered(next(_conversations(path), [])) else None
    return None


def _conversations(path: Path) -> Iterator[list[Message]]:
    """The conversation of each line; empty ones of lines that have none."""
    try:
        yield from (conversation(row) for _, row in rows(path))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path.name} could not be read.",
            str(error)[:300],
            "Fix it: UTF-8, one JSON object per line.",
            FIELD,
        ) from error


def _examples(
    path: Path, tokenizer: PreTrainedTokenizerBase, length: int, random: Random
) -> Iterator[Example]:
    """The examples of the file in random order, truncated to `length` tokens."""
    lines = _conversations(path)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    while buffer := list(islice(lines, SHUFFLE_BUFFER)):
        random.shuffle(buffer)
        for line in buffer:
            if not (turns := answered(line)):
                continue
            prompt = _prompt_ids([*map(asdict, turns[0])], tokenizer)
            answer = plain_ids(turns[1], tokenizer) + end
            ids = (prompt + answer)[:length]
            labels = ([IGNORED_LABEL] * len(prompt) + answer)[:length]
            if len(prompt) < len(ids):  # else no token of the answer is left
                yield ids, labels


def _prompt_ids(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.chat_template:
        try:
            text = render_chat(messages, tokenizer)
        except ModelError as error:
            raise DatasetError(
                "The instructions do not fit the model's chat template.",
                f"{error.what} {error.why}",
                "Use the roles of the template, or fields such as instruction and output.",
                FIELD,
            ) from error
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    asked = "\n\n".join(message["content"] for message in messages)
    text = f"### Instruction:\n{asked}\n\n### Response:\n"
    return prefix(tokenizer) + plain_ids(text, tokenizer)


def _packed(
    examples: Iterator[Example], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Example]:
    """Pack the examples into rows of exactly `length` tokens."""
    padding = tokenizer.eos_token_id or tokenizer.pad_token_id or 0

    def padded(ids: list[int], labels: list[int]) -> Example:
        rest = length - len(ids)
        return ids + [padding] * rest, labels + [IGNORED_LABEL] * rest

    ids, labels = list[int](), list[int]()
    for more_ids, more_labels in examples:
        if len(ids) + len(more_ids) > length:
            yield padded(ids, labels)
            ids, labels = [], []
        ids, labels = ids + more_ids, labels + more_labels
    if ids:
        yield padded(ids, labels)
