"""Hidden-state cache in checkpoints on disk.

Each position has its hidden state h (bfloat16), the log of the softmax denominator, and the most
likely next token. The teacher's distribution over any part of the vocabulary is
exp(W h - denominator), computed on demand.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.decoding.target_model import TargetModel
from backend.drafters.config import GENERATION_BATCH
from backend.drafters.training.prompts import read, write_answers
from backend.reporter import REPLAY, Reporter, stop_if_asked

HELDOUT, LEARNED = "held", "learned"  # prefixes of the checkpoints
ROWS = "rows.safetensors"
WRITE, READ = "Generating answers", "Caching hidden states"


@dataclass(frozen=True)
class SequenceSources:
    """Token ids for training and evaluation: prompts, which the target model answers greedily, or
    plain text.

    Attributes:
        learned: sequences for training.
        heldout: sequences for evaluation.
        limit: maximum number of tokens of an answer; 0 for plain text.
        ends: tokens that end an answer.
    """

    learned: Sequence[Sequence[int]]
    heldout: Sequence[Sequence[int]]
    limit: int = 128
    ends: Collection[int] = ()


@dataclass(frozen=True)
class CachedSequence:
    """A sequence of T tokens.

    The last token of an answer has only an id. In a prompt only the last token has a denominator
    and a most likely next token.

    Attributes:
        ids: token ids [T].
        start: position of the answer; 0 for plain text.
        hidden: hidden states [T, d] bfloat16.
        denominator: log of the softmax denominator [T] float32.
        best: the teacher's most likely *next* token [T].
    """

    ids: Tensor
    start: int
    hidden: Tensor
    denominator: Tensor
    best: Tensor


class CachedSequences(Protocol):
    """Sequences by index, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> CachedSequence: ...


class HiddenStateCache:
    """Sequences in files, read on access."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: list[Any] = [safe_open(file, "pt") for file in files]
        self._locations: list[tuple[int, int]] = []  # file, first row
        self.lengths: list[int] = []
        self.starts: list[int] = []  # position of the answer
        for number, file in enumerate(self._files):
            row = 0
            for length in file.get_tensor("lengths").tolist():
                self._locations.append((number, row))
                self.lengths.append(length)
                row += length
            self.starts += file.get_tensor("starts").tolist()

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, index: int) -> CachedSequence:
        number, row = self._locations[index]
        file, end = self._files[number], row + self.lengths[index]
        part = {
            name: file.get_slice(name)[row:end] for name in ("ids", "hidden", "denominator", "best")
        }
        return CachedSequence(start=self.starts[index], **part)

    def spread(self, tokens: int) -> list[Tensor]:
        """Return the token ids of random sequences with at least `tokens` tokens in total, or of
        all sequences."""
        sequences: list[Tensor] = []
        for index in random.Random(0).sample(range(len(self)), len(self)):
            if sum(map(len, sequences)) >= tokens:
                break
            sequences.append(self[index].ids.long())
        return sequences

    def token_counts(self, vocabulary: int) -> Tensor:
        """Return the count of each token id in the answers, [V]."""
        counts = torch.zeros(vocabulary, dtype=torch.long)
        for index in range(len(self)):
            sequence = self[index]
            counts += torch.bincount(sequence.ids[sequence.start :].long(), minlength=vocabulary)
        return counts


def draft_vocabulary(corpus: HiddenStateCache, vocabulary: int, size: int) -> Tensor:
    """Return the `size` most frequent token ids (0: all), ascending. Ties go to the lower id, which
    was merged earlier."""
    if not 0 < size < vocabulary:
        return torch.arange(vocabulary)
    counts = corpus.token_counts(vocabulary)
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def collect(
    target: TargetModel, sources: SequenceSources, checkpoints: Checkpoints, reporter: Reporter
) -> tuple[HiddenStateCache, HiddenStateCache]:
    """Return the training and the held-out sequences. Those that are not stored yet are generated
    or read.

    Raises:
        ConfigError: the stored sequences have other sources.
        ComputeError: the logits of the target model are not finite.
        CancelledError: cancellation was requested.
    """
    checkpoints.claim(sha256(repr(sources).encode()).hexdigest(), "")
    parts = {HELDOUT: sources.heldout, LEARNED: sources.learned}
    total, files = sum(map(len, parts.values())), {name: list[Path]() for name in parts}
    finished, activity = 0, WRITE if sources.limit else READ
    for name, rows in parts.items():
        rows = sorted(rows, key=len)  # sequences of similar length share a batch
        for number in range(0, len(rows), GENERATION_BATCH):
            batch = rows[number : number + GENERATION_BATCH]
            checkpoint = f"{name}-{number // GENERATION_BATCH:05d}"
            stop_if_asked(reporter)
            folder = checkpoints.find(checkpoint)
            if folder is None:
                _make_batch(target, sources, batch, checkpoints, checkpoint, reporter)
            finished += len(batch)
            reporter.progress(finished, total, REPLAY if folder else activity)
            files[name].append((folder or checkpoints.root / checkpoint) / ROWS)
    return HiddenStateCache(files[LEARNED]), HiddenStateCache(files[HELDOUT])


def _make_batch(
    target: TargetModel,
    sources: SequenceSources,
    batch: Sequence[Sequence[int]],
    checkpoints: Checkpoints,
    checkpoint: str,
    reporter: Reporter,
) -> None:
    """Generate or read one batch of sequences and store it."""
    if sources.limit:
        starts = [len(prompt) for prompt in batch]
        readings = write_answers(target, batch, sources.limit, sources.ends, 0.0, 0, reporter)
    else:
        starts, readings = [0] * len(batch), []
        for row in batch:
            stop_if_asked(reporter)
            readings.append(read(target, torch.tensor(row)))
    tensors = {key: torch.cat([reading[key] for reading in readings]) for key in readings[0]}
    tensors["lengths"] = torch.tensor([len(reading["ids"]) for reading in readings])
    tensors["starts"] = torch.tensor(starts)
    with checkpoints.write(checkpoint) as folder:
        save_file(tensors, folder / ROWS)
