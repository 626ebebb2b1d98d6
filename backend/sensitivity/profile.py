"""Formats a layer may be stored in, and the profile of a model: what every layer loses in every
format. Does not import torch.

Four figures for each layer and format, NaN where there is none:

    error       tr(D H D^T) / tr(W H W^T), of the layer's outputs
    fisher      1/2 sum_o F_o (D H D^T)_oo, predicted loss
    kl, loss    of this layer alone, measured on held-out text

Predicted for a mix is the sum over layers of kl where it was measured, else of the Fisher estimate
times the layer's own ratio of both at the formats that were. Losses in nats a token.

How long a token takes with the layers in each format, measured on one machine:

    t(mix) = sum_l  n_l / N  t(f_l)  +  h(f_head)         n_l of N weights of the blocks in layer l

Time goes where weights are read, so that a format counts by its share of them. What the decoder
reads as one matrix, it reads in the widest of its formats: query, key and value.

A layer is stored pruned, quantized, both, or as it is. Bytes of a layer with N = out x in weights,
of which a share k is kept:

    16-bit             2 N
    bits, groups       N bits / 8 + 2 N / group       a 16-bit scale for each group
    n:m                k N (values + indices)         ceil(log2 m) bits a kept value
    percentage         k N (values) + N / 8           one bit a weight marks what is kept"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from backend.errors import ConfigError
from backend.models.families.stored import LinearShape
from backend.pruning.pattern import Pattern
from backend.quantization.config import Width
from backend.sensitivity.allocation import Table

DENSE_BITS, SCALE_BITS = 16, 16
QKV = re.compile(r"\.[qkv]_proj$")  # one matrix in the decoder
Milliseconds = Annotated[float, Field(gt=-1e9, lt=1e9)]
FIGURES = ("error", "fisher", "kl", "loss")
LARGEST_RATIO = 16.0  # a layer's own, where noise would make it larger
ESTIMATES = {"error": "Output error", "fisher": "Fisher"}


@dataclass(frozen=True)
class Format:
    """How a layer is stored: at a width or in 16 bits (None), pruned by a pattern or not (None)."""

    width: Width | None = None
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str) -> "Format":
        """Parse "dense", "50%", "2:4", "int4-g64" or "2:4+int4-g64". Raises ValueError: it is none
        of them; the message says what is."""
        pruned, plus, width = text.strip().rpartition("+")
        if plus:
            return cls(Width.parse(width), Pattern.parse(pruned))
        if width.startswith("int"):
            return cls(Width.parse(width))
        return cls() if width == "dense" else cls(pattern=Pattern.parse(width))

    def __str__(self) -> str:
        return "+".join(str(part) for part in (self.pattern, self.width) if part) or "dense"

    @property
    def label(self) -> str:
        """In words: "2:4, 4 bits in groups of 64"."""
        words = [str(self.pattern)] if self.pattern else []
        if self.width:
            groups = f" in groups of {self.width.group}" if self.width.group else ""
            words.append(f"{self.width.bits} bits{groups}")
        return ", ".join(words) or "16 bits"

    @property
    def quantized(self) -> bool:
        return self.width is not None

    @property
    def sparsity(self) -> float:
        """Share of the weights that are dropped."""
        return self.pattern.drop if self.pattern else 0.0

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` inputs can be stored so."""
        group = self.width.group if self.width else 0
        divides = not group or columns % group == 0
        return divides and (self.pattern is None or self.pattern.divides(columns))

    def require_fit(self, name: str, columns: int, outside: bool) -> None:
        """Refuse a layer of `columns` inputs that cannot be stored so; `outside`: of the blocks.
        Raises ConfigError: it says why."""
        why = "" if self.fits(columns) else f"It does not divide its {columns} inputs."
        if self.pattern and outside:
            why = "Embedding and head are rounded only, as in a run."
        if why:
            what, do = f"{name} cannot be stored as {self}.", "Choose another format for it."
            raise ConfigError(what, why, do, "formats")

    def bits_per_weight(self, columns: int) -> float:
        """Bits a weight of a row of `columns` inputs takes, with scales, indices and masks."""
        bits, scales = (
            (DENSE_BITS, 0.0)
            if self.width is None
            else (self.width.bits, SCALE_BITS / (self.width.group or columns))
        )
        if self.pattern is None:
            return bits + scales
        index = (self.pattern.group - 1).bit_length() if self.pattern.structured else 0
        mask = 0 if self.pattern.structured else 1
        return (1 - self.sparsity) * (bits + index) + mask + scales

    def nbytes(self, rows: int, columns: int) -> float:
        """Bytes of a layer [rows, columns]."""
        return rows * columns * self.bits_per_weight(columns) / 8


class DecodingTimes(BaseModel, frozen=True, extra="forbid"):
    """Milliseconds a token.

    Attributes:
        layers: format -> with all layers of the blocks in it, and the head in 16 bits.
        head: format -> what a head in it takes more than one in 16 bits; mostly below 0.
        threads: of the decoder.
    """

    layers: dict[str, Annotated[Milliseconds, Field(gt=0)]] = Field(max_length=100)
    head: dict[str, Milliseconds] = Field(max_length=100)
    threads: int = Field(ge=1, lt=1e6)

    @classmethod
    def read(cls, stored: object) -> "DecodingTimes | None":
        """What a run has stored; None where that is nothing, or damaged."""
        try:
            return cls.model_validate(stored)
        except ValidationError:
            return None


@dataclass(frozen=True)
class SensitivityProfile:
    """The figures of all layers.

    Attributes:
        run: the one that measured them.
        figures: [layers, figures, formats].
        times: of a token in each format; None where the run has not measured them.
    """

    run: str
    model: str
    layers: tuple[LinearShape, ...]
    formats: tuple[Format, ...]
    figures: Table
    times: DecodingTimes | None = None

    def figure(self, name: str) -> Table:
        """One of `FIGURES` [layers, formats]."""
        found: Table = self.figures[:, FIGURES.index(name)]
        return found

    @cached_property
    def ratio(self) -> Table:
        """KL over the Fisher estimate of each layer [layers]: its own, and where nothing of it was
        measured that of all layers together."""
        fisher, kl = self.figure("fisher"), self.figure("kl")
        known = np.isfinite(kl) & (fisher > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            own = np.where(known, kl, 0).sum(1) / np.where(known, fisher, 0).sum(1)
        whole = kl[known].sum() / fisher[known].sum() if known.any() else 1.0
        own = np.where(known.any(1), own, whole)
        return np.clip(own, whole / LARGEST_RATIO, whole * LARGEST_RATIO)

    @cached_property
    def predicted(self) -> Table:
        """Predicted loss of each layer in each format [layers, formats]; infinite where it does not
        fit. Never falls below 0."""
        fisher, kl = self.figure("fisher"), self.figure("kl")
        made = np.where(np.isfinite(kl), kl, fisher * self.ratio[:, None])
        return np.where(np.isfinite(made), np.maximum(made, 0.0), np.inf)

    def agreement(self, estimate: str) -> float | None:
        """Spearman's rank correlation of an estimate with the measured KL, over layers, averaged
        over the formats that were measured; None where none was."""
        known, other = self.figure("kl"), self.figure(estimate)
        found = [
            spearman(other[:, f], known[:, f])
            for f in range(len(self.formats))
            if np.isfinite(known[:, f]).sum() > 2
        ]
        return float(np.mean(found)) if found else None


def spearman(one: Table, other: Table) -> float:
    """Rank correlation of what both have; ties in the order they come."""
    both = np.isfinite(one) & np.isfinite(other)
    ranks = np.array([np.argsort(np.argsort(x[both], kind="stable")) for x in (one, other)])
    return float(np.corrcoef(ranks)[0, 1])


def profile_of(
    run: str,
    model: str,
    layers: Sequence[LinearShape],
    formats: Sequence[Format],
    stored: Mapping[str, NDArray[np.float32]],
    times: object = None,
) -> SensitivityProfile:
    """The profile of what is stored of each layer [figures, formats], by name, and of its times. A
    layer that is not stored yet, or is damaged, is left out; so are damaged times."""
    shape = (len(FIGURES), len(formats))
    kept = [x for x in layers if x.name in stored and stored[x.name].shape == shape]
    figures = np.array([stored[x.name] for x in kept], np.float64).reshape(-1, *shape)
    timed = DecodingTimes.read(times)
    return SensitivityProfile(run, model, tuple(kept), tuple(formats), figures, timed)
