"""Hidden-state cache on disk, in checkpoints: of each position the hidden state h (bfloat16), the
log of the softmax denominator, and the most likely token. The teacher's distribution over any part
of the vocabulary is exp(W h - denominator), computed on demand.
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

HELD, LEARNED = "held", "learned"
ROWS = "rows.safetensors"
WRITE, READ = "Generating responses", "Caching hidden states"


@dataclass(frozen=True)
class SequenceSources:
    """Token ids for training and for evaluation: prompts, whose greedy responses end with `ends` or
    after `limit` tokens; or plain text, where `limit` is 0."""

    learned: Sequence[Sequence[int]]
    heldout: Sequence[Sequence[int]]
    limit: int = 128
    ends: Collection[int] = ()


@dataclass(frozen=True)
class CachedSequence:
    """One sequence of T tokens, whose response begins at `start` (0: the whole sequence counts).

    `ids` [T]; `hidden` [T, d] bfloat16; `denominator` [T] float32; `best` [T]: the teacher's first
    choice of the *next* token. Of the last token of a response only the id is known; of the prompt,
    denominator and choice are those of its last token alone."""

    ids: Tensor
    start: int
    hidden: Tensor
    denominator: Tensor
    best: Tensor


class CachedSequences(Protocol):
    """Sequences by number, in memory or in files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> CachedSequence: ...


class HiddenStateCache:
    """Sequences in files, read on access."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: list[Any] = [safe_open(file, "pt") for file in files]
        self._places: list[tuple[int, int]] = []  # file, first row
        self.lengths: list[int] = []
        self.starts: list[int] = []  # position of the response
        for number, file in enumerate(self._files):
            row = 0
            for length in file.get_tensor("lengths").tolist():
                self._places.append((number, row))
                self.lengths.append(length)
                row += length
            self.starts += file.get_tensor("starts").tolist()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> CachedSequence:
        number, row = self._places[index]
        file, end = self._files[number], row + self.lengths[index]
        part = {
            name: file.get_slice(name)[row:end] for name in ("ids", "hidden", "denominator", "best")
        }
        return CachedSequence(start=self.starts[index], **part)

    def spread(self, tokens: int) -> list[Tensor]:
        """Token ids of random sequences with at least `tokens` tokens in total, or of all."""
        sequences: list[Tensor] = []
        for index in random.Random(0).sample(range(len(self)), len(self)):
            if sum(map(len, sequences)) >= tokens:
                break
            sequences.append(self[index].ids.long())
        return sequences

    def token_counts(self, vocabulary: int) -> Tensor:
        """[V] count of each id in the responses."""
        counts = torch.zeros(vocabulary, dtype=torch.long)
        for index in range(len(self)):
            sample = self[index]
            counts += torch.bincount(sample.ids[sample.start :].long(), minlength=vocabulary)
        return counts


def draft_vocabulary(corpus: HiddenStateCache, vocabulary: int, size: int) -> Tensor:
    """The `size` most frequent ids (0: all), ascending; ties go to the lower, earlier merge."""
    if not 0 < size < vocabulary:
        return torch.arange(vocabulary)
    counts = corpus.token_counts(vocabulary)
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def collect(
    target: TargetModel, sources: SequenceSources, checkpoints: Checkpoints, reporter: Reporter
) -> tuple[HiddenStateCache, HiddenStateCache]:
    """The training and the held-out sequences, written or read unless they are stored. Raises
    ConfigError: the stored sequences have other sources. ComputeError: the logits of the target
    model are not finite. CancelledError: cancellation was requested."""
    checkpoints.claim(sha256(repr(sources).encode()).hexdigest(), "")
    parts = {HELD: sources.heldout, LEARNED: sources.learned}
    total, files = sum(map(len, parts.values())), {name: list[Path]() for name in parts}
    done, doing = 0, WRITE if sources.limit else READ
    for name, rows in parts.items():
        rows = sorted(rows, key=len)  # sequences of similar length share a batch
        for number in range(0, len(rows), GENERATION_BATCH):
            batch = rows[number : number + GENERATION_BATCH]
            place = f"{name}-{number // GENERATION_BATCH:05d}"
            stop_if_asked(reporter)
            kept = checkpoints.find(place)
            if kept is None:
                _make(target, sources, batch, checkpoints, place, reporter)
            done += len(batch)
            reporter.progress(done, total, REPLAY if kept else doing)
            files[name].append((kept or checkpoints.root / place) / ROWS)
    return HiddenStateCache(files[LEARNED]), HiddenStateCache(files[HELD])


def _make(
    target: TargetModel,
    sources: SequenceSources,
    batch: Sequence[Sequence[int]],
    checkpoints: Checkpoints,
    place: str,
    reporter: Reporter,
) -> None:
    """Generate or read one batch of sequences and store it."""
    if sources.limit:
        starts = [len(prompt) for prompt in batch]
        made = write_answers(target, batch, sources.limit, sources.ends, 0.0, 0, reporter)
    else:
        starts, made = [0] * len(batch), []
        for row in batch:
            stop_if_asked(reporter)
            made.append(read(target, torch.tensor(row)))
    tensors = {key: torch.cat([each[key] for each in made]) for key in made[0]}
    tensors["lengths"] = torch.tensor([len(each["ids"]) for each in made])
    tensors["starts"] = torch.tensor(starts)
    with checkpoints.write(place) as folder:
        save_file(tensors, folder / ROWS)
