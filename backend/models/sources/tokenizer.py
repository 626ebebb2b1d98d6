"""The check that a model folder has a tokenizer that fits the model, made in a limited child. Does
not import torch."""

from pathlib import Path

from tokenizers import Tokenizer

from backend.errors import ModelError
from backend.limited import LimitedChildError, read

FAST_FILE = "tokenizer.json"
SLOW_FILES = (
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TRIAL = "A text."
MOST_TOKENS = 32  # of a character; a byte of UTF-8 has one, and NFKD makes 18 characters of one
REMEDY = "Copy the tokenizer files of the original model into the folder."


def check_tokenizer(folder: Path, vocabulary: int) -> None:
    """Check the tokenizer in a model folder; of a format other than tokenizer.json, its presence.
    `vocabulary`: the number of rows of the model's embedding. Raises ModelError: it is missing,
    damaged, or has tokens without an embedding."""
    if not (folder / FAST_FILE).exists():
        if not any((folder / name).is_file() for name in SLOW_FILES):
            raise _refused(folder, "It has no tokenizer.")
        return
    try:
        largest = int(read(f"{__name__}:largest_id", folder / FAST_FILE))
    except LimitedChildError as error:
        raise _refused(folder, f"Its {FAST_FILE} cannot be read: {error}") from error
    check_ids(folder, largest, vocabulary)


def check_ids(folder: Path, largest: int, vocabulary: int) -> None:
    """Check that every token has an embedding. Raises ModelError: the id `largest` is outside the
    `vocabulary`."""
    if largest >= vocabulary:
        raise _refused(
            folder,
            f"Its tokenizer has the id {largest}, but the vocabulary of the model ends with "
            f"{vocabulary - 1}.",
        )


def largest_id(path: Path) -> int:
    """The largest id that ordinary text can be encoded to. Special tokens do not count: some models
    have one, such as a placeholder for images, behind the end of their vocabulary. A short text is
    encoded and decoded on trial."""
    tokenizer = Tokenizer.from_file(str(path))
    ids = tokenizer.encode(TRIAL).ids
    tokenizer.decode(ids)
    if len(ids) > MOST_TOKENS * len(TRIAL):
        raise _refused(path.parent, f"It makes {len(ids):,} tokens of {len(TRIAL)} characters.")
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    every = tokenizer.get_vocab(with_added_tokens=True).values()
    return max((i for i in every if i not in special), default=-1)


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(f"The model in {folder} cannot read text.", why, REMEDY, field="model")
