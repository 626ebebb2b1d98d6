"""Calibration and evaluation tokens of a run: windows that never overlap, the same on every
machine.

- evaluation: windows evenly spaced among the first `POOL_FACTOR` times as many as requested of the
  evaluation split, since neighboring windows of one article are correlated. If a text without
  published splits has fewer, all of them, and then windows of its other documents. They depend on
  text, tokenizer, number and length alone, so that all runs on a text measure on the same;
- calibration: documents in random order, a random offset in each row, and a random sample from the
  first `POOL_FACTOR` times as many windows as requested, none of which shares a passage with the
  evaluation windows;
- held out, to choose by: random windows of the same sample, apart from both.

Windows of token ids cut out of documents: short ones are joined with the end-of-text token into
rows of at least one window. If the tokenizer prepends a beginning-of-text token, every window has
one.

Special tokens spelled out in a text, such as WikiText's `<unk>`, are read as what they are there:
plain text. A model that meets the token instead has a loss that tells nothing of its text.

A model can write the calibration text itself: ancestral sampling at temperature 1, without
truncation, so that layers see inputs like those of the training text (as LLM-QAT, Liu et al.
2023).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import ComputeError, DatasetError
from backend.models.foreign_tokenizer import TextTokenizer
from backend.models.kv_cache import cache_name
from backend.reporter import Reporter, stop_if_asked
from backend.text.corpora import SPLIT_CORPORA, Role, documents, preprocessing

BATCH = 16  # windows sampled at once
SHUFFLE_BUFFER = 10_000  # size of the shuffle buffer, in documents
_PIECE = re.compile(r"(?s).{1,1000000}(?:\n\n|\Z)|.{1,1000000}")  # bounds the tokenizer's memory
POOL_FACTOR = 8
PASSAGE = 64  # consecutive tokens that calibration and evaluation may not share


def first_tokens(tokenizer: TextTokenizer, count: int, generator: torch.Generator) -> Tensor:
    """First tokens [count, 1]: beginning-of-text, or random ordinary tokens if there is none."""
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
    """Sample windows [segments, context] int64 on the CPU; after an end of text a new text starts.

    Reproducible for the same model and seed. Raises ComputeError: the logits are not finite;
    CancelledError: cancellation was requested."""
    generator = torch.Generator().manual_seed(seed)
    name = cache_name(model)
    rows = first_tokens(tokenizer, segments, generator).repeat(1, context)
    for number, batch in enumerate(rows.split(BATCH)):  # views, filled in place
        cache = None
        for column in range(1, context):
            stop_if_asked(reporter)
            given = batch[:, column - 1 : column].to(model.device)
            output = model(input_ids=given, use_cache=True, **{name: cache})
            cache = output[name]
            batch[:, column : column + 1] = _draw(output.logits[:, -1], generator)
            done = number * BATCH * context + len(batch) * (column + 1)
            reporter.progress(done, rows.numel(), "Sampling calibration text")
    return rows


def prefix(tokenizer: TextTokenizer) -> list[int]:
    """The beginning-of-text token if the tokenizer prepends it, else nothing."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a").input_ids[0] == begin else []


def encoded(texts: Iterable[str], tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """The ids of each document, without special tokens."""
    for text in texts:
        pieces = _PIECE.findall(text)
        yield [token for piece in pieces for token in plain_ids(piece, tokenizer)]


def plain_ids(text: str, tokenizer: TextTokenizer) -> list[int]:
    """The ids of a text, none of them a special token."""
    return list(
        tokenizer(
            text, add_special_tokens=False, verbose=False, split_special_tokens=True
        ).input_ids
    )


def literals(texts: Iterable[str], tokenizer: TextTokenizer) -> str:
    """The special tokens that the texts spell out, and how often: "<unk> 12 times"."""
    whole = "\n".join(texts)
    counts = {token: whole.count(token) for token in dict.fromkeys(tokenizer.all_special_tokens)}
    return ", ".join(f"{token} {n} times" for token, n in counts.items() if n)


def _rows(texts: Iterable[str], tokenizer: TextTokenizer, length: int) -> Iterator[list[int]]:
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
    tokenizer: TextTokenizer,
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
    preprocessing: str = ""  # of the text before it was tokenized; empty: none
    literals: str = ""  # special tokens that the text has as plain text, and how often; empty: none


def slice_of(
    rows: Tensor,
    tokenizer: TextTokenizer,
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
        # after the first token of each window; exact unless a character is cut
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
    tokens = sum(len(ids) for ids in encoded(texts, tokenizer))
    count = {"calibration": "the calibration segments", "evaluation": "the evaluation windows"}
    return DatasetError(
        f"{corpus} has too little text for {role}.",
        f"It has {tokens:,} tokens, enough for {available:,} windows of {context:,}; "
        f"{requested:,} windows ({requested * context:,} tokens) are needed.",
        f"Lower {count[role]} or the context length, or choose a longer text.",
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
    """Random windows [segments, context] of the calibration split of a corpus, and `heldout` others
    of the same text; neither shares a passage with `evaluation`. `shared`: whether evaluation uses
    the same corpus; if not, corpora without published splits are used whole. Raises DatasetError:
    no such text, not readable, or too short."""
    random = Random(seed)
    texts = shuffled(documents(corpus, "calibration", shared), random)
    windows = cut_windows(texts, tokenizer, context, lambda slack: random.randint(0, slack))
    if evaluation:
        windows = apart_from(evaluation.input_ids, windows, context)
    pool, needed = list(islice(windows, POOL_FACTOR * segments)), segments + heldout
    pool += islice(windows, max(0, needed - len(pool)))
    if len(pool) < needed:
        texts = documents(corpus, "calibration", shared)
        raise _too_little(texts, tokenizer, corpus, "calibration", needed, len(pool), context)
    chosen = random.sample(range(len(pool)), segments)
    others = random.sample(sorted({*range(len(pool))} - {*chosen}), heldout)
    begins = bool(prefix(tokenizer))
    rows = [
        torch.tensor([pool[n] for n in part], dtype=torch.int64).view(-1, context)
        for part in (chosen, others)
    ]
    first, second = (
        slice_of(part, tokenizer, corpus, "calibration", seed, begins) for part in rows
    )
    return first, second


def evaluation_slice(
    corpus: str, tokenizer: TextTokenizer, windows: int, context: int
) -> TextSlice:
    """Windows [windows, context] of a corpus, as described above. Raises DatasetError: no such
    text, not readable, or too short."""

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
    return slice_of(torch.tensor(rows), tokenizer, corpus, "evaluation", 0, bool(prefix(tokenizer)))


def apart_from(rows: Tensor, windows: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Those of `windows`, of `length` tokens, that share no `PASSAGE` consecutive tokens with
    `rows` [n, L]; or, where either are shorter, no such windows."""
    passage = min(PASSAGE, length, rows.shape[1])
    taken = _passages(rows, passage).unique()  # sorted
    for window in windows:
        own = _passages(torch.tensor([window]), passage)
        nearest = torch.searchsorted(taken, own).clamp_(max=len(taken) - 1)
        if not (taken[nearest] == own).any():
            yield window


def sample_slice(
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    segments: int,
    context: int,
    seed: int,
    reporter: Reporter,
) -> TextSlice:
    """Windows [segments, context] generated by the dense model (see `sample`)."""
    rows = sample(model, tokenizer, segments, context, seed, reporter)
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
        raise DatasetError(
            f"Calibration and evaluation share {int(seen.sum()):,} passages of {length} tokens.",
            "Calibrating on the evaluation text makes the results look too good.",
            "Choose a different text for one of them.",
            "evaluation_text",
        )
