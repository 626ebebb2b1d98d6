"""The tokens a run calibrates on and is evaluated on: windows that never overlap.

- calibration: documents in random order, a random offset in each row, and a random choice of the
  first `SPREAD` times as many windows as were asked;
- evaluation: windows one after the other in the corpus's order, and of the first `SPREAD` times as
  many as were asked, evenly spaced ones: neighbours in one article would agree too well;
- self: the dense model itself writes the calibration text (`sample_slice`).

The same corpus, tokenizer, seed and context give the same ids, hence the same sha256, anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backend.errors import DatasetError
from backend.reporter import Reporter
from backend.text import sampling
from backend.text.corpora import Role
from backend.text.documents import documents, preprocessing
from backend.text.windows import cut_windows, encoded, prefix, shuffled

SPREAD = 8
PASSAGE = 64  # tokens in a row that calibration and evaluation may not share


@dataclass(frozen=True)
class TextSlice:
    """The tokens one role of a run reads.

    Attributes:
        input_ids: [n, L] int64, on the CPU.
        corpus: the name it was found by; "self" when the model wrote it.
        context: L.
        bos: whether every window begins with the beginning-of-text token.
        sha256: of shape and ids: two slices with the same value hold the same tokens.
        tokens: n * L.
        utf8_bytes: of the text of the predicted tokens, all but the first of each window.
        preprocessing: what was done to the text before it was tokenised; empty: nothing.
    """

    input_ids: Tensor
    corpus: str
    role: Role
    seed: int
    context: int
    bos: bool
    sha256: str
    tokens: int
    utf8_bytes: int
    preprocessing: str = ""


def slice_of(
    rows: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str,
    role: Role,
    seed: int,
    bos: bool,
    prepared: str | None = None,
) -> TextSlice:
    """The record of the windows `rows` [n, L].

    Args:
        prepared: what was done to the text; None: what is done to that corpus.
    """
    return TextSlice(
        input_ids=rows,
        corpus=corpus,
        role=role,
        seed=seed,
        context=rows.shape[1],
        bos=bos,
        sha256=_sha256(rows),
        tokens=rows.numel(),
        utf8_bytes=sum(_predicted_bytes(row, tokenizer) for row in rows.tolist()),
        preprocessing=preprocessing(corpus) if prepared is None else prepared,
    )


def _sha256(rows: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(rows.shape)).encode())
    digest.update(rows.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _predicted_bytes(row: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """UTF-8 bytes of a window's text after its first token; exact unless a character is cut."""
    whole, first = tokenizer.batch_decode(
        [row, row[:1]], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return len(whole.encode()) - len(first.encode())


def _too_little(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, corpus: str, role: Role,
    asked: int, found: int, context: int,
) -> DatasetError:  # fmt: skip
    there = sum(len(ids) for ids in encoded(texts, tokenizer))
    count = {"calibration": "the calibration segments", "evaluation": "the evaluation windows"}
    return DatasetError(
        f"{corpus} has too little text for {role}.",
        f"It holds {there:,} tokens, enough for {found:,} windows of {context:,}; "
        f"{asked:,} windows ({asked * context:,} tokens) were asked.",
        f"Lower {count[role]} or the context length, or choose a longer text.",
        f"{role}_text",
    )


def calibration_slice(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    segments: int,
    context: int,
    seed: int,
    shared: bool = True,
) -> TextSlice:
    """Random windows [segments, context] of the calibration part of a corpus.

    Args:
        shared: whether the evaluation reads the same corpus; if not, the whole of an undivided
            corpus may be used.

    Raises:
        DatasetError: no such text, not readable, or too short.
    """
    random = Random(seed)
    texts = shuffled(documents(corpus, "calibration", shared), random)
    found = cut_windows(texts, tokenizer, context, lambda slack: random.randint(0, slack))
    pool = list(islice(found, SPREAD * segments))
    if len(pool) < segments:
        texts = documents(corpus, "calibration", shared)
        raise _too_little(texts, tokenizer, corpus, "calibration", segments, len(pool), context)
    rows = torch.tensor(random.sample(pool, segments))
    return slice_of(rows, tokenizer, corpus, "calibration", seed, bool(prefix(tokenizer)))


def evaluation_slice(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    windows: int,
    context: int,
    shared: bool = True,
) -> TextSlice:
    """Evenly spaced windows [windows, context] of the evaluation part of a corpus.

    Asking for as many as there are takes them all, one after the other.

    Args:
        shared: whether the calibration reads the same corpus; if not, the whole of an undivided
            corpus may be used.

    Raises:
        DatasetError: no such text, not readable, or too short.
    """
    texts = documents(corpus, "evaluation", shared)
    pool = list(islice(cut_windows(texts, tokenizer, context, lambda slack: 0), SPREAD * windows))
    if len(pool) < windows:
        texts = documents(corpus, "evaluation", shared)
        raise _too_little(texts, tokenizer, corpus, "evaluation", windows, len(pool), context)
    rows = [pool[n * len(pool) // windows] for n in range(windows)]
    return slice_of(torch.tensor(rows), tokenizer, corpus, "evaluation", 0, bool(prefix(tokenizer)))


def sample_slice(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    segments: int,
    context: int,
    seed: int,
    reporter: Reporter,
) -> TextSlice:
    """Windows [segments, context] that the dense model itself writes (see `sampling.sample`)."""
    rows = sampling.sample(model, tokenizer, segments, context, seed, reporter)
    bos = tokenizer.bos_token_id is not None
    return slice_of(rows, tokenizer, "self", "calibration", seed, bos)


def _passages(rows: Tensor, length: int) -> Tensor:
    """A 64-bit hash of every `length` tokens in a row: [n * (L - length + 1)] int64."""
    count = rows.shape[1] - length + 1
    hashed = torch.zeros(len(rows), count, dtype=torch.int64)
    for offset in range(length):
        hashed = hashed * 6364136223846793005 + rows[:, offset : offset + count] + 1
    return hashed.flatten()


def check_apart(calibration: TextSlice, evaluation: TextSlice) -> None:
    """Reject texts of which `PASSAGE` tokens in a row (or a whole shorter window) are the same.

    Raises:
        DatasetError: calibration has seen some of the evaluation text.
    """
    length = min(PASSAGE, calibration.context, evaluation.context)
    if length < PASSAGE and calibration.corpus == evaluation.corpus:
        return  # the parts are apart by construction, and short windows may be alike by chance
    seen = torch.isin(
        _passages(evaluation.input_ids, length), _passages(calibration.input_ids, length)
    )
    if seen.any():
        raise DatasetError(
            f"Calibration and evaluation share {int(seen.sum()):,} passages of {length} tokens.",
            "A model adjusted to the text it is judged by looks better than it is.",
            "Choose another text for one of the two.",
            "evaluation_text",
        )
