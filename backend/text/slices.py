"""Calibration and evaluation tokens of a run: windows that never overlap, identical on every
machine.

- evaluation: windows evenly spaced among the first `POOL_FACTOR` times as many as requested of the
  evaluation split, since neighboring windows of one article are correlated. If a text without
  published splits has fewer, all of them, followed by windows of its other documents. They depend
  on text, tokenizer, number and length alone, so that all runs on a text use the same windows;
- calibration: documents in random order, a random offset in each row, and a random sample from the
  first `POOL_FACTOR` times as many windows as requested, none of which shares a passage with the
  evaluation windows;
- held out, to choose settings by: random windows of the same sample, disjoint from both.

Windows are cut from the token ids of documents. Short documents are joined with the end-of-text
token into rows of at least one window. If the tokenizer prepends a beginning-of-text token, every
window has one.

A special token spelled out in a text, such as WikiText's `<unk>`, is tokenized as plain text. The
loss of a model that reads the special token instead does not measure the text.

A model can write the calibration text itself: ancestral sampling at temperature 1, without
truncation, so that layers see inputs like those of the training text (as LLM-QAT, Liu et al.
2023)."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ComputeError, DatasetError
from backend.models.foreign_tokenizer import TextTokenizer
from backend.models.kv_cache import cache_name
from backend.reporter import Reporter, stop_if_asked
from backend.text.corpora import SPLIT_CORPORA, Role, documents, preprocessing

BATCH = 16  # windows per sampling batch
SHUFFLE_BUFFER = 10_000  # size of the shuffle buffer, in documents or conversations
_PIECE = re.compile(r"(?s).{1,1000000}(?:\n\n|\Z)|.{1,1000000}")  # bounds the tokenizer's memory
POOL_FACTOR = 8
PASSAGE_TOKENS = 64  # consecutive tokens that calibration and evaluation may not share

Item = TypeVar("Item")


def first_tokens(tokenizer: TextTokenizer, count: int, generator: torch.Generator) -> Tensor:
    """Return first tokens [count, 1]: beginning-of-text, or random ordinary tokens if there is
    none."""
    if tokenizer.bos_token_id is not None:
        return torch.full((count, 1), tokenizer.bos_token_id)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([t for t in range(len(tokenizer)) if t not in special])
    return ordinary[torch.randint(len(ordinary), (count, 1), generator=generator)]


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sample one token per row: [b, V] -> [b, 1], on the CPU so that seeds are portable."""
    probabilities = logits.float().softmax(-1).cpu()
    if not probabilities.isfinite().all():
        raise ComputeError(
            "The model cannot generate text: its logits are not finite.",
            "Its weights overflow in this precision, or are damaged.",
            "Load it in another precision, or choose a calibration text.",
        )
    return torch.multinomial(probabilities, 1, generator=generator)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    segments: int,
    context: int,
    seed: int,
    reporter: Reporter,
) -> Tensor:
    """Sample windows [segments, context] int64 on the CPU; a new text starts after an end of text.

    Reproducible for the same model and seed. Raises ComputeError: the logits are not finite;
    CancelledError: cancellation was requested."""
    generator = torch.Generator().manual_seed(seed)
    name = cache_name(model)
    rows = first_tokens(tokenizer, segments, generator).repeat(1, context)
    for number, batch in enumerate(rows.split(BATCH)):  # views, filled in place
        cache = None
        for column in range(1, context):
            stop_if_asked(reporter)
            previous = batch[:, column - 1 : column].to(model.device)
            output = model(input_ids=previous, use_cache=True, **{name: cache})
            cache = output[name]
            batch[:, column : column + 1] = _draw(output.logits[:, -1], generator)
            sampled = number * BATCH * context + len(batch) * (column + 1)
            reporter.progress(sampled, rows.numel(), "Sampling calibration text")
    return rows


def bos_prefix(tokenizer: TextTokenizer) -> list[int]:
    """Return the beginning-of-text token if the tokenizer prepends it, else an empty list."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a").input_ids[0] == begin else []


def encode_documents(texts: Iterable[str], tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """Yield the token ids of each document, without special tokens."""
    for text in texts:
        pieces = _PIECE.findall(text)
        yield [token for piece in pieces for token in plain_ids(piece, tokenizer)]


def plain_ids(text: str, tokenizer: TextTokenizer) -> list[int]:
    """Return the token ids of a text, none of them a special token."""
    return list(
        tokenizer(
            text, add_special_tokens=False, verbose=False, split_special_tokens=True
        ).input_ids
    )


def literals(texts: Iterable[str], tokenizer: TextTokenizer) -> str:
    """Describe the special tokens that the texts spell out, and their counts: "<unk> 12 times"."""
    joined = "\n".join(texts)
    counts = {token: joined.count(token) for token in dict.fromkeys(tokenizer.all_special_tokens)}
    return ", ".join(f"{token} {n} times" for token, n in counts.items() if n)


def _rows(texts: Iterable[str], tokenizer: TextTokenizer, length: int) -> Iterator[list[int]]:
    """Join documents into rows of at least `length` tokens; a shorter remainder is dropped."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    row: list[int] = []
    for ids in encode_documents(texts, tokenizer):
        row += end + ids if row else ids
        if len(row) >= length:
            yield row
            row = []


def cut_windows(
    texts: Iterable[str],
    tokenizer: TextTokenizer,
    context: int,
    offset: Callable[[int], int],
) -> Iterator[list[int]]:
    """Yield all full windows of `context` ids of every row, starting at `offset(slack)` <=
    slack."""
    begin = bos_prefix(tokenizer)
    length = context - len(begin)
    for row in _rows(texts, tokenizer, length):
        for start in range(offset(len(row) % length), len(row) - length + 1, length):
            yield begin + row[start : start + length]


def shuffled(items: Iterable[Item], random: Random) -> Iterator[Item]:
    """Shuffle items in buffers of `SHUFFLE_BUFFER`, which works for streams."""
    items = iter(items)
    while buffer := list(islice(items, SHUFFLE_BUFFER)):
        random.shuffle(buffer)
        yield from buffer


@dataclass(frozen=True)
class TextSlice:
    """Tokens for one role of a run.

    Attributes:
        input_ids: [n, L] int64, on the CPU.
        corpus: its name; "self" if the model generated the text.
        context: L.
        bos: True if every window starts with the beginning-of-text token.
        sha256: digest of shape and ids.
        tokens: n * L.
        utf8_bytes: bytes of the predicted text, without the first token of each window.
        preprocessing: of the text before it was tokenized; empty: none.
        literals: special tokens that the text spells out, and their counts; empty: none.
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
    literals: str = ""


def slice_of(
    rows: Tensor,
    tokenizer: TextTokenizer,
    corpus: str,
    role: Role,
    seed: int,
    bos: bool,
    prepared: str | None = None,
) -> TextSlice:
    """Return the text slice of the windows `rows` [n, L]. `prepared`: preprocessing of the text;
    None: that of the corpus."""
    digest = hashlib.sha256(repr(tuple(rows.shape)).encode())
    digest.update(rows.numpy().astype("<i8").tobytes())
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    texts, first = (tokenizer.batch_decode(x.tolist(), **plain) for x in (rows, rows[:, :1]))
    return TextSlice(
        input_ids=rows,
        corpus=corpus,
        role=role,
        seed=seed,
        context=rows.shape[1],
        bos=bos,
        sha256=digest.hexdigest(),
        tokens=rows.numel(),
        # exact unless a window boundary cuts a character
        utf8_bytes=len("".join(texts).encode()) - len("".join(first).encode()),
        preprocessing=preprocessing(corpus) if prepared is None else prepared,
        literals=literals(texts, tokenizer),
    )


def _too_little(
    texts: Iterable[str],
    tokenizer: TextTokenizer,
    corpus: str,
    role: Role,
    requested: int,
    available: int,
    context: int,
) -> DatasetError:
    tokens = sum(len(ids) for ids in encode_documents(texts, tokenizer))
    setting = {"calibration": "the calibration segments", "evaluation": "the evaluation windows"}
    return DatasetError(
        f"{corpus} has too little text for {role}.",
        f"It has {tokens:,} tokens, enough for {available:,} windows of {context:,}; "
        f"{requested:,} windows ({requested * context:,} tokens) are needed.",
        f"Lower {setting[role]} or the context length, or choose a longer text.",
        f"{role}_text",
    )


def calibration_slices(
    corpus: str,
    tokenizer: TextTokenizer,
    segments: int,
    context: int,
    seed: int,
    heldout: int = 0,
    evaluation: TextSlice | None = None,
    shared: bool = True,
) -> tuple[TextSlice, TextSlice]:
    """Return random windows [segments, context] of the calibration split of a corpus, and `heldout`
    other windows of it. Neither shares a passage with `evaluation`.

    Args:
        shared: True if evaluation uses the same corpus. Otherwise, corpora without published splits
            are used completely.

    Raises:
        DatasetError: no such text, not readable, or too short.
    """
    random = Random(seed)
    texts = shuffled(documents(corpus, "calibration", shared), random)
    windows = cut_windows(texts, tokenizer, context, lambda slack: random.randint(0, slack))
    if evaluation:
        windows = without_shared_passages(evaluation.input_ids, windows, context)
    pool, needed = list(islice(windows, POOL_FACTOR * segments)), segments + heldout
    pool += islice(windows, max(0, needed - len(pool)))
    if len(pool) < needed:
        texts = documents(corpus, "calibration", shared)
        raise _too_little(texts, tokenizer, corpus, "calibration", needed, len(pool), context)
    indices = random.sample(range(len(pool)), segments)
    heldout_indices = random.sample(sorted({*range(len(pool))} - {*indices}), heldout)
    has_bos = bool(bos_prefix(tokenizer))
    rows = [
        torch.tensor([pool[n] for n in part], dtype=torch.int64).view(-1, context)
        for part in (indices, heldout_indices)
    ]
    calibration, heldout_slice = (
        slice_of(part, tokenizer, corpus, "calibration", seed, has_bos) for part in rows
    )
    return calibration, heldout_slice


def evaluation_slice(
    corpus: str, tokenizer: TextTokenizer, windows: int, context: int
) -> TextSlice:
    """Return windows [windows, context] of a corpus, as described above. Raises DatasetError: no
    such text, not readable, or too short."""

    def pool_of(role: Role, count: int) -> list[list[int]]:
        texts = documents(corpus, role)
        return [*islice(cut_windows(texts, tokenizer, context, lambda slack: 0), count)]

    pool = pool_of("evaluation", POOL_FACTOR * windows)
    if len(pool) < windows and corpus not in SPLIT_CORPORA:
        pool += pool_of("calibration", windows - len(pool))
    if len(pool) < windows:
        texts = documents(corpus, "evaluation", corpus in SPLIT_CORPORA)
        raise _too_little(texts, tokenizer, corpus, "evaluation", windows, len(pool), context)
    rows = [pool[n * len(pool) // windows] for n in range(windows)]
    return slice_of(
        torch.tensor(rows), tokenizer, corpus, "evaluation", 0, bool(bos_prefix(tokenizer))
    )


def without_shared_passages(
    rows: Tensor, windows: Iterable[list[int]], length: int
) -> Iterator[list[int]]:
    """Yield the windows of `length` tokens that share no `PASSAGE_TOKENS` consecutive tokens with
    `rows` [n, L]. If windows or rows are shorter, the shorter length counts."""
    passage = min(PASSAGE_TOKENS, length, rows.shape[1])
    excluded = _passage_hashes(rows, passage).unique()  # sorted
    for window in windows:
        hashes = _passage_hashes(torch.tensor([window]), passage)
        nearest = torch.searchsorted(excluded, hashes).clamp_(max=len(excluded) - 1)
        if not (excluded[nearest] == hashes).any():
            yield window


def sample_slice(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    segments: int,
    context: int,
    seed: int,
    reporter: Reporter,
) -> TextSlice:
    """Return windows [segments, context] generated by the dense model (see `sample`)."""
    rows = sample(model, tokenizer, segments, context, seed, reporter)
    bos = tokenizer.bos_token_id is not None
    return slice_of(rows, tokenizer, "self", "calibration", seed, bos)


def _passage_hashes(rows: Tensor, length: int) -> Tensor:
    """Return 64-bit hashes of all sequences of `length` consecutive tokens: [n * (L - length + 1)]
    int64."""
    count = rows.shape[1] - length + 1
    hashes = torch.zeros(len(rows), count, dtype=torch.int64)
    for offset in range(length):
        hashes = hashes * 6364136223846793005 + rows[:, offset : offset + count] + 1
    return hashes.flatten()


def require_disjoint(calibration: TextSlice, evaluation: TextSlice) -> None:
    """Check that two texts share no `PASSAGE_TOKENS` consecutive tokens, or complete shorter
    windows. Raises DatasetError: part of the evaluation text is in the calibration text."""
    length = min(PASSAGE_TOKENS, calibration.context, evaluation.context)
    if length < PASSAGE_TOKENS and calibration.corpus == evaluation.corpus:
        return  # the splits are disjoint; short windows may be equal by chance
    in_calibration = torch.isin(
        _passage_hashes(evaluation.input_ids, length),
        _passage_hashes(calibration.input_ids, length),
    )
    if shared := int(in_calibration.sum()):
        raise DatasetError(
            f"Calibration and evaluation share {shared:,} passages of {length} tokens.",
            "Calibrating on the evaluation text makes the results look too good.",
            "Choose a different text for one of them.",
            "evaluation_text",
        )
