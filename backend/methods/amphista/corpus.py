"""The training data of a drafter: token ids and what the frozen base makes of them, on disk.

The base runs over every sequence once. Kept of each position are the hidden state h (bfloat16),
the log of the softmax's denominator, and the most likely token: with them the teacher's
distribution over any part of the vocabulary is exp(W h - denominator), computed when it is needed.

One checkpoint for each batch of sequences, so that an interrupted run does not begin anew.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.checkpoints import Checkpoints
from backend.methods.amphista.target import Target
from backend.methods.amphista.writing import write_answers
from backend.reporter import REPLAY, Reporter, stop_if_asked

WRITERS = 64  # answers written at once
LOGITS = 2**24  # entries [n, V] computed at once
HELD, LEARNT = "held", "learnt"
WRITE, READ = "The base writes answers", "The base reads the text"


@dataclass(frozen=True)
class Sources:
    """Where the sequences come from.

    Attributes:
        prompts: token ids; the base writes the answers to them. Empty: `texts` are read.
        texts: token ids of plain text.
        heldout: sequences kept apart to judge the heads; answers among them are always greedy.
        limit: tokens of an answer at most; ends: tokens that end it.
        temperature, seed: of the writing.
    """

    prompts: Sequence[Sequence[int]] = ()
    texts: Sequence[Sequence[int]] = ()
    heldout: int = 32
    limit: int = 128
    ends: Collection[int] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
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


class Corpus:
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

    def __getitem__(self, index: int) -> Sample:
        number, row = self._places[index]
        file, end = self._files[number], row + self.lengths[index]
        part = {
            name: file.get_slice(name)[row:end] for name in ("ids", "hidden", "denominator", "best")
        }
        return Sample(start=self.starts[index], **part)

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


def draft_vocabulary(corpus: Corpus, vocabulary: int, size: int) -> Tensor:
    """The ids that occur most, ascending; ties go to the lower id, the tokenizer's earlier merge.

    Args:
        size: how many; 0 or more than there are: all of them.
    """
    if not 0 < size < vocabulary:
        return torch.arange(vocabulary)
    counts = corpus.token_counts(vocabulary)
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def collect(
    target: Target, sources: Sources, checkpoints: Checkpoints, reporter: Reporter
) -> tuple[Corpus, Corpus]:
    """Writes and reads all sequences that are not stored yet.

    Returns:
        The sequences to learn from and those held out.
    """
    every = list(sources.prompts or sources.texts)
    random.Random(sources.seed).shuffle(every)
    parts = {HELD: every[: sources.heldout], LEARNT: every[sources.heldout :]}
    files: dict[str, list[Path]] = {HELD: [], LEARNT: []}
    done, doing = 0, WRITE if sources.prompts else READ
    for name, rows in parts.items():
        rows = sorted(rows, key=len)
        for number in range(0, len(rows), WRITERS):
            batch, place = rows[number : number + WRITERS], f"{name}-{number // WRITERS:05d}"
            stop_if_asked(reporter)
            folder = checkpoints.find(place)
            if folder is None:
                _make(target, sources, name, batch, number, checkpoints, place, reporter)
                folder = checkpoints.root / place
                reporter.progress(done + len(batch), len(every), doing)
            else:
                reporter.progress(done + len(batch), len(every), REPLAY)
            done += len(batch)
            files[name].append(folder / "rows.safetensors")
    return Corpus(files[LEARNT]), Corpus(files[HELD])


def _make(
    target: Target,
    sources: Sources,
    name: str,
    batch: Sequence[Sequence[int]],
    number: int,
    checkpoints: Checkpoints,
    place: str,
    reporter: Reporter,
) -> None:
    """Stores one batch of sequences and what the base makes of them."""
    starts = [0] * len(batch)
    if sources.prompts:
        starts = [len(prompt) for prompt in batch]
        heat = 0.0 if name == HELD else sources.temperature
        seed = sources.seed * 1_000_003 + number
        batch = write_answers(target, batch, sources.limit, sources.ends, heat, seed, reporter)
    read = []
    for row in batch:
        stop_if_asked(reporter)
        read.append(read_by_base(target, torch.tensor(row)))
    tensors = {key: torch.cat([each[key] for each in read]) for key in read[0]}
    tensors["lengths"] = torch.tensor([len(row) for row in batch])
    tensors["starts"] = torch.tensor(starts)
    with checkpoints.write(place) as folder:
        save_file(tensors, folder / "rows.safetensors")


@torch.inference_mode()
def read_by_base(target: Target, ids: Tensor) -> dict[str, Tensor]:
    """What is kept of token ids [T]."""
    hidden = target.hidden(ids[None].to(target.device))[0]
    denominators, best = [], []
    for rows in hidden.split(max(1, LOGITS // target.vocabulary)):
        logits = target.logits(rows).float()
        denominators.append(logits.logsumexp(-1).cpu())
        best.append(logits.argmax(-1).int().cpu())
    return {
        "ids": ids.int(),
        "hidden": hidden.to(torch.bfloat16).cpu(),
        "denominator": torch.cat(denominators),
        "best": torch.cat(best),
    }
