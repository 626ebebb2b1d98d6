"""Calibration and evaluation tokens of a run: windows that never overlap, the same on every
machine.

- calibration: documents in random order, a random offset in each row, and a random sample from the
  first `POOL_FACTOR` times as many windows as requested;
- evaluation: windows evenly spaced among the first `POOL_FACTOR` times as many as requested, since
  neighbouring windows of one article are correlated.
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

POOL_FACTOR = 8
PASSAGE = 64  # consecutive tokens that calibration and evaluation may not share


@dataclass(frozen=True)
class TextSlice:
    """The tokens for one role of a run."""

    input_ids: Tensor  # [n, L] int64, on the CPU
    corpus: str  # its name; "self" if the model generated the text
    role: Role
    seed: int
    context: int  # L
    bos: bool  # whether every window starts with the beginning-of-text token
    sha256: str  # of shape and ids, equal for equal tokens
    tokens: int  # n * L
    utf8_bytes: int  # of the predicted text, without the first token of each window
    preprocessing: str = ""  # of the text before it was tokenised; empty: none


def slice_of(
    rows: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str,
    role: Role,
    seed: int,
    bos: bool,
    prepared: str | None = None,
) -> TextSlice:
    """The text slice of the windows `rows` [n, L]. `prepared`: preprocessing of the text; None:
    that of the corpus."""
    digest = hashlib.sha256(repr(tuple(rows.shape)).encode())
    digest.update(rows.numpy().astype("<i8").tobytes())
    return TextSlice(
        input_ids=rows,
        corpus=corpus,
        role=role,
        seed=seed,
        context=rows.shape[1],
        bos=bos,
        sha256=digest.hexdigest(),
        tokens=rows.numel(),
        utf8_bytes=sum(_predicted_bytes(row, tokenizer) for row in rows.tolist()),
        preprocessing=preprocessing(corpus) if prepared is None else prepared,
    )


def _predicted_bytes(row: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """UTF-8 bytes of a window after its first token; exact unless a character is cut."""
    whole, first = tokenizer.batch_decode(
        [row, row[:1]], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return len(whole.encode()) - len(first.encode())


def _too_little(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, corpus: str, role: Role,
    requested: int, available: int, context: int,
) -> DatasetError:  # fmt: skip
    tokens = sum(len(ids) for ids in encoded(texts, tokenizer))
    count = {"calibration": "the calibration segments", "evaluation": "the evaluation windows"}
    return DatasetError(
        f"{corpus} has too little text for {role}.",
        f"It has {tokens:,} tokens, enough for {available:,} windows of {context:,}; "
        f"{requested:,} windows ({requested * context:,} tokens) are needed.",
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
    """Random windows [segments, context] of the calibration split of a corpus. `shared`: whether
    evaluation uses the same corpus; if not, corpora without published splits are used whole. Raises
    DatasetError: no such text, not readable, or too short."""
    random = Random(seed)
    texts = shuffled(documents(corpus, "calibration", shared), random)
    windows = cut_windows(texts, tokenizer, context, lambda slack: random.randint(0, slack))
    pool = list(islice(windows, POOL_FACTOR * segments))
    if len(pool) < segments:
        texts = documents(corpus, "calibration", shared)
        raise _too_little(texts, tokenizer, corpus, "calibration", segments, len(pool), context)
    rows = torch.tensor(random.sample(pool, segments))
    return slice_of(rows, tokenizer, corpus, "calibration", seed, bool(prefix(tokenizer)))


def evaluation_slice(
    corpus: str, tokenizer: PreTrainedTokenizerBase, windows: int, context: int, shared: bool = True
) -> TextSlice:
    """Evenly spaced windows [windows, context] of the evaluation split of a corpus.

    If the split has exactly that many windows, all of them are used, in order. `shared`: whether
    calibration uses the same corpus; if not, corpora without published splits are used whole.
    Raises DatasetError: no such text, not readable, or too short."""
    texts = documents(corpus, "evaluation", shared)
    pool = list(
        islice(cut_windows(texts, tokenizer, context, lambda slack: 0), POOL_FACTOR * windows)
    )
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
    """Windows [segments, context] generated by the dense model (see `sampling.sample`)."""
    rows = sampling.sample(model, tokenizer, segments, context, seed, reporter)
    bos = tokenizer.bos_token_id is not None
    return slice_of(rows, tokenizer, "self", "calibration", seed, bos)


def _passages(rows: Tensor, length: int) -> Tensor:
    """64-bit hashes of all runs of `length` tokens: [n * (L - length + 1)] int64."""
    count = rows.shape[1] - length + 1
    hashed = torch.zeros(len(rows), count, dtype=torch.int64)
    for offset in range(length):
        hashed = hashed * 6364136223846793005 + rows[:, offset : offset + count] + 1
    return hashed.flatten()


def check_apart(calibration: TextSlice, evaluation: TextSlice) -> None:
    """Check that the texts share no `PASSAGE` consecutive tokens, or whole shorter windows. Raises
    DatasetError: part of the evaluation text is in the calibration text."""
    length = min(PASSAGE, calibration.context, evaluation.context)
    if length < PASSAGE and calibration.corpus == evaluation.corpus:
        return  # splits are disjoint; short windows may be equal by chance
    seen = torch.isin(
        _passages(evaluation.input_ids, length), _passages(calibration.input_ids, length)
    )
    if seen.any():
        what = f"Calibration and evaluation share {int(seen.sum()):,} passages of {length} tokens."
        why = "Calibrating on the evaluation text makes the results look too good."
        raise DatasetError(what, why, "Choose a different text for one of them.", "evaluation_text")
