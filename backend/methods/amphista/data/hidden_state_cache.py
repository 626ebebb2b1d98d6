"""The training data of a drafter: token ids and what the frozen base makes of them, on disk.

The base runs over every sequence once, an answer while it writes it. Kept of each position are the
hidden state h (bfloat16), the log of the softmax's denominator, and the most likely token: with
them the teacher's distribution over any part of the vocabulary is exp(W h - denominator), computed
when it is needed.

One checkpoint for each batch of sequences, so that an interrupted run does not begin anew.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.methods.amphista.config import WRITERS
from backend.methods.amphista.data.generation import read, write_answers
from backend.methods.amphista.target_model import TargetModel
from backend.reporter import REPLAY, Reporter, stop_if_asked

HELD, LEARNT = "held", "learnt"
WRITE, READ = "The base writes answers", "The base reads the text"


@dataclass(frozen=True)
class SequenceSources:
    """Where the sequences come from.

    Attributes:
        learnt, heldout: token ids, to learn from and kept apart to judge the heads: prompts that
            the base answers, or plain text.
        limit: tokens of an answer at most; 0: there are no answers, the text itself is read.
        ends: tokens that end an answer.
        temperature, seed: of the writing; held-out answers are always greedy.
    """

    learnt: Sequence[Sequence[int]]
    heldout: Sequence[Sequence[int]]
    limit: int = 128
    ends: Collection[int] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class CachedSequence:
    """One sequence of T tokens.

    Attributes:
        ids [T]; start: where the answer begins (0: all of it counts).
        hidden [T, d] bfloat16; denominator [T] float32; best [T]: the teacher's first choice of
        the *next* token.
    """

    ids: Tensor
    start: int
    hidden: Tensor
    denominator: Tensor
    best: Tensor


class HiddenStateCache:
    """Sequences in files; a sample is read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: list[Any] = [safe_open(file, "pt") for file in files]
        self._places: list[tuple[int, int]] = []  # file, first row
        self.lengths: list[int] = []
        self.starts: list[int] = []  # where the answer begins
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
        """Token ids of sequences drawn from all over the corpus, `tokens` or a few more in all;
        every sequence where there are fewer."""
        found: list[Tensor] = []
        for index in random.Random(0).sample(range(len(self)), len(self)):
            if sum(map(len, found)) >= tokens:
                break
            found.append(self[index].ids.long())
        return found

    def token_counts(self, vocabulary: int) -> Tensor:
        """[V] how often each id occurs in the answers."""
        counts = torch.zeros(vocabulary, dtype=torch.long)
        for index in range(len(self)):
            sample = self[index]
            counts += torch.bincount(sample.ids[sample.start :].long(), minlength=vocabulary)
        return counts


def draft_vocabulary(corpus: HiddenStateCache, vocabulary: int, size: int) -> Tensor:
    """The ids that occur most, ascending; ties go to the lower id, the tokenizer's earlier merge.

    Args:
        size: how many; 0 or more than there are: all of them.
    """
    if not 0 < size < vocabulary:
        return torch.arange(vocabulary)
    counts = corpus.token_counts(vocabulary)
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def collect(
    target: TargetModel, sources: SequenceSources, checkpoints: Checkpoints, reporter: Reporter
) -> tuple[HiddenStateCache, HiddenStateCache]:
    """Write and reads all sequences that are not stored yet.

    Returns:
        The sequences to learn from and those held out.

    Raises:
        ConfigError: what is stored was made of other sources.
        ComputeError: nothing can be drawn from the base.
        CancelledError: cancellation was requested.
    """
    checkpoints.claim(sha256(repr(sources).encode()).hexdigest(), "")
    parts = {HELD: sources.heldout, LEARNT: sources.learnt}
    total, files = sum(map(len, parts.values())), {name: list[Path]() for name in parts}
    done, doing = 0, WRITE if sources.limit else READ
    for name, rows in parts.items():
        rows = sorted(rows, key=len)  # those of like length share a batch
        for number in range(0, len(rows), WRITERS):
            batch, place = rows[number : number + WRITERS], f"{name}-{number // WRITERS:05d}"
            stop_if_asked(reporter)
            folder = checkpoints.find(place)
            if folder is None:
                _make(target, sources, name, batch, number, checkpoints, place, reporter)
                folder = checkpoints.root / place
                reporter.progress(done + len(batch), total, doing)
            else:
                reporter.progress(done + len(batch), total, REPLAY)
            done += len(batch)
            files[name].append(folder / "rows.safetensors")
    return HiddenStateCache(files[LEARNT]), HiddenStateCache(files[HELD])


def _make(
    target: TargetModel,
    sources: SequenceSources,
    name: str,
    batch: Sequence[Sequence[int]],
    number: int,
    checkpoints: Checkpoints,
    place: str,
    reporter: Reporter,
) -> None:
    """Store one batch of sequences and what the base makes of them."""
    if sources.limit:
        starts = [len(prompt) for prompt in batch]
        heat = 0.0 if name == HELD else sources.temperature
        seed = sources.seed * 1_000_003 + number
        made = write_answers(target, batch, sources.limit, sources.ends, heat, seed, reporter)
    else:
        starts, made = [0] * len(batch), []
        for row in batch:
            stop_if_asked(reporter)
            made.append(read(target, torch.tensor(row)))
    tensors = {key: torch.cat([each[key] for each in made]) for key in made[0]}
    tensors["lengths"] = torch.tensor([len(each["ids"]) for each in made])
    tensors["starts"] = torch.tensor(starts)
    with checkpoints.write(place) as folder:
        save_file(tensors, folder / "rows.safetensors")
