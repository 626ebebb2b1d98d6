"""Storage formats of layers, and the sensitivity profile of a model: the loss of every layer in
every format. Does not import torch.

A profile has four figures for each layer and format, on held-out text; NaN stands for a missing
figure:

    error       sum_t |D x_t|^2 / sum_t |W x_t|^2, relative output error of the layer
    fisher      1/2 mean_t (g_t . D x_t)^2, estimated loss (`backend.sensitivity.measured`)
    kl, loss    measured with only this layer changed

Losses are in nats per token. The predicted loss of a mix is the sum over layers of kl if it was
measured, and otherwise of the Fisher estimate times the layer's ratio of kl to fisher in the
measured formats.

The time per token of a mix, with times measured on one machine, is

    t(mix) = sum_l  n_l / N  t(f_l)  +  h(f_head)         n_l of N weights of the blocks in layer l

Reading weights takes most of the time, so each format counts by its share of the weights. The
decoder reads query, key and value as one matrix, in the widest of their formats.

A layer is stored pruned, quantized, both, or in 16 bits. The bytes of a layer with N = out x in
weights, of which a share k remains after pruning, are

    16-bit             2 N
    bits, groups       N bits / 8 + 2 N / group       a 16-bit scale per group
    n:m                k N (values + indices)         ceil(log2 m) bits per remaining value
    percentage         k N (values) + N / 8           one bit per weight marks remaining values"""

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
from backend.quantization.config import IntegerFormat
from backend.sensitivity.allocation import Table

DENSE_BITS, SCALE_BITS = 16, 16
QKV = re.compile(r"\.[qkv]_proj$")  # layers that are one matrix in the decoder
Milliseconds = Annotated[float, Field(gt=-1e9, lt=1e9)]
FIGURES = ("error", "fisher", "kl", "loss")
# Limit of the ratio of a layer relative to that of all layers, against measurement noise.
LARGEST_RATIO = 16.0
# Text of the estimates: held out, or (in older profiles) the calibration text of the solvers.
TOKEN_WISE, IN_SAMPLE = "held out, token by token", "in sample"
ESTIMATES = {"error": "Output error", "fisher": "Fisher"}  # figure -> label


@dataclass(frozen=True)
class Format:
    """Storage format of a layer.

    Attributes:
        width: bits and group size; None for 16 bits.
        pattern: sparsity pattern; None for a layer that is not pruned.
    """

    width: IntegerFormat | None = None
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str) -> "Format":
        """Parse "dense", "50%", "2:4", "int4-g64" or "2:4+int4-g64".

        Raises:
            ValueError: `text` is not a format; the message shows the syntax.
        """
        pattern, plus, width = text.strip().rpartition("+")
        if plus:
            return cls(IntegerFormat.parse(width), Pattern.parse(pattern))
        if width.startswith("int"):
            return cls(IntegerFormat.parse(width))
        return cls() if width == "dense" else cls(pattern=Pattern.parse(width))

    def __str__(self) -> str:
        return "+".join(str(part) for part in (self.pattern, self.width) if part) or "dense"

    @property
    def label(self) -> str:
        """Description such as "2:4, 4 bits in groups of 64"."""
        words = [str(self.pattern)] if self.pattern else []
        if self.width:
            groups = f" in groups of {self.width.group}" if self.width.group else ""
            words.append(f"{self.width.bits} bits{groups}")
        return ", ".join(words) or "16 bits"

    @property
    def quantized(self) -> bool:
        """True if the weights are quantized."""
        return self.width is not None

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return self.pattern.drop if self.pattern else 0.0

    def fits(self, columns: int) -> bool:
        """Return True if rows of `columns` inputs can be stored in this format."""
        group = self.width.group if self.width else 0
        divides = not group or columns % group == 0
        return divides and (self.pattern is None or self.pattern.divides(columns))

    def require_fit(self, name: str, columns: int, outside: bool) -> None:
        """Refuse a layer that cannot be stored in this format.

        Args:
            name: name of the layer.
            columns: number of its inputs.
            outside: True for the embedding and the head, which lie outside the blocks.

        Raises:
            ConfigError: the layer cannot be stored in this format.
        """
        obstacle = "" if self.fits(columns) else f"Groups do not divide its {columns} inputs."
        if self.pattern and outside:
            obstacle = "Embedding and head can be quantized, but not pruned."
        if obstacle:
            problem = f"{name} cannot be stored as {self}."
            raise ConfigError(problem, obstacle, "Choose another format for it.", "formats")

    def bits_per_weight(self, columns: int) -> float:
        """Bits per weight of rows of `columns` inputs, including scales, indices and masks."""
        value_bits, scale_bits = float(DENSE_BITS), 0.0
        if self.width:
            value_bits = float(self.width.bits)
            scale_bits = SCALE_BITS / (self.width.group or columns)
        if self.pattern is None:
            return value_bits + scale_bits
        index_bits, mask_bits = 0, 1
        if self.pattern.structured:
            index_bits, mask_bits = (self.pattern.group - 1).bit_length(), 0
        return (1 - self.sparsity) * (value_bits + index_bits) + mask_bits + scale_bits

    def nbytes(self, rows: int, columns: int) -> float:
        """Bytes of a layer [rows, columns] in this format."""
        return rows * columns * self.bits_per_weight(columns) / 8


class DecodingTimes(BaseModel, frozen=True, extra="forbid"):
    """Milliseconds per token in each format.

    Attributes:
        layers: format -> time with all layers of the blocks in it and the head in 16 bits.
        head: format -> difference between a head in it and a head in 16 bits, usually negative.
        threads: threads of the decoder.
    """

    layers: dict[str, Annotated[Milliseconds, Field(gt=0)]] = Field(max_length=100)
    head: dict[str, Milliseconds] = Field(max_length=100)
    threads: int = Field(ge=1, lt=1e6)

    @classmethod
    def read(cls, stored: object) -> "DecodingTimes | None":
        """Validate the record of a run; None if it is missing or damaged."""
        try:
            return cls.model_validate(stored)
        except ValidationError:
            return None


@dataclass(frozen=True)
class SensitivityProfile:
    """Sensitivity figures of all layers of a model.

    Attributes:
        run: run that measured them.
        model: name of the model.
        layers: shapes of the layers.
        formats: candidate formats.
        figures: [layers, figures, formats].
        times: time per token in each format; None if the run did not measure it.
        estimate: text on which error and fisher were estimated, `TOKEN_WISE` or `IN_SAMPLE`.
    """

    run: str
    model: str
    layers: tuple[LinearShape, ...]
    formats: tuple[Format, ...]
    figures: Table
    times: DecodingTimes | None = None
    estimate: str = IN_SAMPLE

    def figure(self, name: str) -> Table:
        """Table [layers, formats] of one of `FIGURES`."""
        table: Table = self.figures[:, FIGURES.index(name)]
        return table

    @cached_property
    def ratio(self) -> Table:
        """Ratio of KL to the Fisher estimate of each layer [layers]; for layers without a measured
        KL, the ratio over all layers."""
        fisher, kl = self.figure("fisher"), self.figure("kl")
        measured = np.isfinite(kl) & (fisher > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(measured, kl, 0).sum(1) / np.where(measured, fisher, 0).sum(1)
        mean_ratio = kl[measured].sum() / fisher[measured].sum() if measured.any() else 1.0
        ratios = np.where(measured.any(1), ratios, mean_ratio)
        return np.clip(ratios, mean_ratio / LARGEST_RATIO, mean_ratio * LARGEST_RATIO)

    @cached_property
    def predicted(self) -> Table:
        """Predicted loss of each layer in each format [layers, formats], at least 0; infinite for
        formats that do not fit."""
        fisher, kl = self.figure("fisher"), self.figure("kl")
        loss = np.where(np.isfinite(kl), kl, fisher * self.ratio[:, None])
        return np.where(np.isfinite(loss), np.maximum(loss, 0.0), np.inf)

    def agreement(self, estimate: str) -> float | None:
        """Spearman's rank correlation over layers of an estimate with the measured KL, averaged
        over the measured formats; None if no format was measured."""
        kl, estimates = self.figure("kl"), self.figure(estimate)
        correlations = [
            spearman(estimates[:, f], kl[:, f])
            for f in range(len(self.formats))
            if np.isfinite(kl[:, f]).sum() > 2
        ]
        return float(np.mean(correlations)) if correlations else None


def spearman(a: Table, b: Table) -> float:
    """Spearman's rank correlation over entries that are finite in both tables; ties are ranked in
    order of appearance."""
    finite = np.isfinite(a) & np.isfinite(b)
    ranks = np.array([np.argsort(np.argsort(x[finite], kind="stable")) for x in (a, b)])
    return float(np.corrcoef(ranks)[0, 1])


def profile_of(
    run: str,
    model: str,
    layers: Sequence[LinearShape],
    formats: Sequence[Format],
    stored: Mapping[str, NDArray[np.float32]],
    times: object = None,
    estimate: object = None,
) -> SensitivityProfile:
    """Build a profile from the records of a run.

    Layers without a valid record are left out, and so are damaged times.

    Args:
        run: name of the run.
        model: name of the model.
        layers: shapes of the layers of the model.
        formats: candidate formats.
        stored: layer name -> recorded figures [figures, formats].
        times: recorded decoding times.
        estimate: recorded estimate; profiles without a record are `IN_SAMPLE`.
    """
    shape = (len(FIGURES), len(formats))
    valid = [x for x in layers if x.name in stored and stored[x.name].shape == shape]
    figures = np.array([stored[x.name] for x in valid], np.float64).reshape(-1, *shape)
    decoding_times = DecodingTimes.read(times)
    method = TOKEN_WISE if estimate == TOKEN_WISE else IN_SAMPLE
    return SensitivityProfile(
        run, model, tuple(valid), tuple(formats), figures, decoding_times, method
    )
