"""Check that a model folder has a tokenizer that fits the model. The tokenizer is parsed in a
limited child process. Does not import torch."""

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
TEST_TEXT = "A text."
# A byte-level tokenizer needs up to 4 tokens for a character. NFKD turns one into up to 18.
MAX_TOKENS_PER_CHARACTER = 32
REMEDY = "Copy the tokenizer files of the original model into the folder."


def check_tokenizer(folder: Path, vocabulary: int) -> None:
    """Check the tokenizer in a model folder. Formats other than tokenizer.json are only checked for
    presence. `vocabulary`: number of rows of the model's embedding. Raises ModelError: the
    tokenizer is missing or damaged, or has tokens without an embedding."""
    if not (folder / FAST_FILE).exists():
        if not any((folder / name).is_file() for name in SLOW_FILES):
            raise _refused(folder, "It has no tokenizer.")
        return
    try:
        largest = int(read(f"{__name__}:largest_id", folder / FAST_FILE))
    except LimitedChildError as error:
        raise _refused(folder, f"Its {FAST_FILE} cannot be read: {error}") from error
    check_token_ids(folder, largest, vocabulary)


def check_token_ids(folder: Path, largest: int, vocabulary: int) -> None:
    """Check that every token has an embedding. Raises ModelError: the largest token id is not below
    `vocabulary`."""
    if largest >= vocabulary:
        raise _refused(
            folder,
            f"Its tokenizer has the id {largest}, but the vocabulary of the model ends with "
            f"{vocabulary - 1}.",
        )


def largest_id(path: Path) -> int:
    """Return the largest token id of ordinary text, after encoding and decoding a test text.
    Special tokens are ignored: in some models, a placeholder for images is beyond the
    vocabulary."""
    tokenizer = Tokenizer.from_file(str(path))
    ids = tokenizer.encode(TEST_TEXT).ids
    tokenizer.decode(ids)
    if len(ids) > MAX_TOKENS_PER_CHARACTER * len(TEST_TEXT):
        raise _refused(
            path.parent, f"It encodes {len(TEST_TEXT)} characters as {len(ids):,} tokens."
        )
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True).values()
    return max((i for i in vocabulary if i not in special), default=-1)


def _refused(folder: Path, why: str) -> ModelError:
    return ModelError(f"The model in {folder} cannot read text.", why, REMEDY, field="model")
