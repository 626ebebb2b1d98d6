"""Training rows and their labels, identical on every machine.

- plain text: random windows as for calibration; the loss covers every token;
- instructions, from a .jsonl file of conversations with answers: the loss covers the answer only.
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
from backend.text.chat_template import chat_ids
from backend.text.corpora import documents
from backend.text.files import Message, conversation, json_lines, split_answer
from backend.text.slices import (
    TextSlice,
    bos_prefix,
    cut_windows,
    plain_ids,
    shuffled,
    slice_of,
    without_shared_passages,
)

IGNORED_LABEL = -100  # label of tokens without a loss, as in torch and transformers
FIELD = "training_text"
Example = tuple[list[int], list[int]]  # ids, labels


@dataclass(frozen=True)
class TrainingSet:
    """Rows that a model is trained on.

    Attributes:
        labels: [n, L] int64: the tokens, or `IGNORED_LABEL` for those without a loss.
        form: "text" or "instructions".
    """

    text: TextSlice
    labels: Tensor
    form: str


def training_set(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    seed: int,
    min_rows: int = 1,
    shared: bool = True,
    excluded: Sequence[Tensor] = (),
) -> TrainingSet:
    """Return at most `count` rows of `length` tokens; fewer if the text is shorter.

    Args:
        min_rows: minimum number of rows.
        shared: True if evaluation uses the same corpus.
        excluded: rows [n, L] that plain text must share no passage with.

    Raises:
        DatasetError: no such text, not readable, or too short.
    """
    if path := _instructions(corpus):
        examples = _examples(path, tokenizer, length, Random(seed))
        packed = list(islice(_packed(examples, tokenizer, length), count))
        ids, labels = (torch.tensor([row[part] for row in packed]) for part in (0, 1))
    else:
        random = Random(seed)
        texts = shuffled(documents(corpus, "calibration", shared), random)
        windows = cut_windows(texts, tokenizer, length, lambda slack: random.randint(0, slack))
        for other_rows in excluded:
            windows = without_shared_passages(other_rows, windows, length)
        ids = torch.tensor(list(islice(windows, count)))
        labels = ids
    if len(ids) < min_rows:
        raise DatasetError(
            f"{corpus} has too little text to train on.",
            f"It yields {len(ids)} rows of {length} tokens; {min_rows} are needed."
            + (" Examples whose prompt alone fills a row are skipped." if path else ""),
            ("Raise" if path else "Lower")
            + " the sequence length, lower the batch size, or choose a longer text.",
            FIELD,
        )
    has_bos, applied = bool(bos_prefix(tokenizer)), "" if path else None
    text = slice_of(ids, tokenizer, corpus, "calibration", seed, has_bos, applied)
    return TrainingSet(text, labels, "instructions" if path else "text")


def _instructions(corpus: str) -> Path | None:
    """Return the file of a corpus of instructions with answers; None for plain text."""
    if not corpus.startswith(files.PREFIX) or not corpus.endswith(".jsonl"):
        return None
    for path in files.corpus_paths(corpus.removeprefix(files.PREFIX)):
        return path if split_answer(next(_conversations(path), [])) else None
    return None


def _conversations(path: Path) -> Iterator[list[Message]]:
    """Yield the conversation of each line; empty for lines without one."""
    try:
        yield from (conversation(row) for _, row in json_lines(path))
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
    """Yield the examples of the file in random order, truncated to `length` tokens."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for messages in shuffled(_conversations(path), random):
        if not (turns := split_answer(messages)):
            continue
        prompt = _prompt_ids([*map(asdict, turns[0])], tokenizer)
        answer = plain_ids(turns[1], tokenizer) + end
        ids = (prompt + answer)[:length]
        labels = ([IGNORED_LABEL] * len(prompt) + answer)[:length]
        if len(prompt) < len(ids):  # otherwise the answer is truncated completely
            yield ids, labels


def _prompt_ids(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.chat_template:
        try:
            return chat_ids(messages, tokenizer)
        except ModelError as error:
            raise DatasetError(
                "The instructions do not fit the model's chat template.",
                f"{error.what} {error.why}",
                "Use the roles of the template, or fields such as instruction and output.",
                FIELD,
            ) from error
    instruction = "\n\n".join(message["content"] for message in messages)
    text = f"### Instruction:\n{instruction}\n\n### Response:\n"
    return bos_prefix(tokenizer) + plain_ids(text, tokenizer)


def _packed(
    examples: Iterator[Example], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Example]:
    """Pack the examples into rows of exactly `length` tokens."""
    padding = tokenizer.eos_token_id or tokenizer.pad_token_id or 0

    def padded(ids: list[int], labels: list[int]) -> Example:
        missing = length - len(ids)
        return ids + [padding] * missing, labels + [IGNORED_LABEL] * missing

    ids, labels = list[int](), list[int]()
    for example_ids, example_labels in examples:
        if len(ids) + len(example_ids) > length:
            yield padded(ids, labels)
            ids, labels = [], []
        ids, labels = ids + example_ids, labels + example_labels
    if ids:
        yield padded(ids, labels)
