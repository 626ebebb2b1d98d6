"""The dense model, and tables of it from which the layers of any format are made at once.

    percentage, n:m     magnitude, or Wanda by the energies of the dense model's inputs; `ranks`
    bits                rounded to nearest on a min-max grid, the ranges of its groups stored
    both                pruned, then rounded
    embedding, head     rounded as runs do

The first stage of a run is the same bit for bit where it needs no inputs: magnitude, RTN. What a
run does on the inputs that the layers before leave is made by `refinement`. Tables are made again
when a budget of memory has dropped them; those used last stay.

The calibration text goes through the blocks with weights as given: the same hidden states, bit for
bit, as in the passes of a run, which hold the model in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.decoding.target_model import fingerprint
from backend.errors import ConfigError, ModelError
from backend.live.ranks import LARGEST_GROUP, WeightScores, rank_mask, rank_table
from backend.live.running import LiveWeight, RunningModel, layers_of
from backend.models.block_forward import block_of_weights, even_batch, open_stream
from backend.models.blocks import (
    LinearWeight,
    block_linears,
    decoder_blocks,
    resolve_dtype,
    with_data,
)
from backend.pruning.config import SDSConfig
from backend.pruning.masks import keep_mask, masked
from backend.pruning.pattern import Pattern
from backend.quantization.config import DLQATConfig
from backend.quantization.grid import QuantGrid, QuantizedWeight, group_scales
from backend.quantization.plan import QuantSettings, embedding_search
from backend.quantization.range_search import quantize_embedding
from backend.sensitivity.profile import Format

Weights = Mapping[str, Tensor]  # module name in a block -> [out, in], float32
ROOM = 2**30  # bytes of tables
INSTANT = 8  # segments of the text that the inputs of an instant answer are measured on
IDENTITY = 12  # letters

Progress: TypeAlias = tuple[float, float, str]  # done, of how many, the activity
Score: TypeAlias = Literal["magnitude", "wanda"]


class KeptTables:
    """Tensors by key, of about `room` bytes together; the one asked for last is always kept."""

    def __init__(self, room: int) -> None:
        self.room, self.nbytes = room, 0
        self._kept: dict[Hashable, Tensor] = {}  # the one used last comes last

    def find(self, key: Hashable) -> Tensor | None:
        """The table of that key; None where it is not kept, or no longer."""
        if key not in self._kept:
            return None
        table = self._kept[key] = self._kept.pop(key)
        return table

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The table of that key, made where it is not kept."""
        table = self.find(key)
        return self.put(key, make()) if table is None else table

    def put(self, key: Hashable, table: Tensor) -> Tensor:
        """Keep a table, in place of those not used for longest."""
        if key in self._kept:
            self.nbytes -= self._kept.pop(key).nbytes
        self._kept[key] = table
        self.nbytes += table.nbytes
        while self.nbytes > self.room and len(self._kept) > 1:
            self.nbytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return table


class CalibrationWalk:
    """One pass over the blocks with `ids` [segments, L] in `dtype`, as many at a time as in a run
    (`even_batch` of `batch`). `rest`: what is no matrix of a block is rounded to it; None: it stays
    as it is. `stop`: called before each batch; may raise to end the pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        batch: int,
        dtype: torch.dtype,
        rest: torch.dtype | None,
        stop: Callable[[], None],
    ) -> None:
        self._model, self._rest, self._stop = model, rest, stop
        _, *others = decoder_blocks(model)  # the first may be run once, to see what it returns
        inside = {id(p) for block in others for p in block.parameters()}
        with self._in_float32(p for p in model.parameters() if id(p) not in inside):
            self._stream = open_stream(model, ids, even_batch(model, len(ids), batch), dtype)

    @torch.no_grad()
    def inputs(
        self,
        block: int,
        weights: Weights,
        linears: Mapping[str, LinearWeight],
        level: StatisticsLevel,
    ) -> dict[str, InputStatistics]:
        """What some of the linears of a block, which has these weights, are given; by module."""
        with InputCollector(linears, level) as collector:
            self._forward(block, weights)
            return collector.finish()

    @torch.no_grad()
    def advance(self, block: int, weights: Weights) -> None:
        """Go past a block with these weights."""
        self._stream.advance(self._forward(block, weights))

    def _forward(self, block: int, weights: Weights) -> list[Tensor]:
        linears, outputs = block_linears(self._model, block).values(), list[Tensor]()
        matrices = {id(x.layer.get_parameter("weight")) for x in linears}
        parameters, stream = decoder_blocks(self._model)[block].parameters(), self._stream
        with (
            self._in_float32(p for p in parameters if id(p) not in matrices),
            block_of_weights(self._model, stream, block) as forward,
        ):
            for states, call in zip(stream.hidden, stream.calls[block], strict=True):
                self._stop()
                outputs.append(forward(weights, states, call))
        return outputs

    def _in_float32(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Rounded to `rest`; afterward as they were."""
        return with_data({p: p.data.to(self._rest or p.dtype).float() for p in parameters})


class DenseModel:
    """A model that is never changed; live models share its weights and tables, and its lock. Raises
    ModelError: it has no layers that can be changed.

    Args:
        model: in the dtype of its files, on the device to work on.
        calibration: token ids [segments, L]; None: nothing that needs inputs can be made.
        sds, dlqat: settings of a run, for all but patterns, widths and methods.
        room: bytes that tables may take.

    Attributes:
        layers: full name -> layer, those of the blocks in order, then embedding and head.
        outside: names of the embedding, and of a head that is not tied to it.
        identity: of its weights, in hexadecimal.
        lock: held while anything is computed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Tensor | None = None,
        sds: SDSConfig | None = None,
        dlqat: DLQATConfig | None = None,
        room: int = ROOM,
    ) -> None:
        self.model, self.calibration = model.requires_grad_(False), calibration
        self.sds, self.dlqat = sds or SDSConfig(), dlqat or DLQATConfig()
        self.blocks, self.lock = len(decoder_blocks(model)), threading.RLock()
        self.layers = layers_of(model)
        # Read at any time: while a block runs on other weights, its modules hold those.
        self._weights = {name: x.layer.get_parameter("weight") for name, x in self.layers.items()}
        self.outside = [name for name, x in self.layers.items() if x.block < 0]
        if len(self.outside) == len(self.layers):
            raise ModelError(
                "The model cannot be changed live.",
                "Its blocks have no linear layers.",
                "Choose another model.",
                "model",
            )
        self.identity = fingerprint(model)[:IDENTITY]
        self.tables = KeptTables(room)
        self._energies: dict[str, Tensor] = {}  # of the dense model's inputs
        self._measuring: Iterator[Progress] | None = None
        self._references: dict[torch.dtype, RunningModel] = {}

    @property
    def in_blocks(self) -> list[str]:
        """Names of the layers of the blocks."""
        return [name for name, x in self.layers.items() if x.block >= 0]

    @property
    def nbytes(self) -> int:
        """Of weights, tables and references."""
        references = sum(x.nbytes for x in [*self._references.values()])
        return sum(p.nbytes for p in self.model.parameters()) + self.tables.nbytes + references

    def reference(self, dtype: torch.dtype) -> RunningModel:
        """The dense model as live ones run, to compare with."""
        with self.lock:
            if dtype not in self._references:
                self._references[dtype] = RunningModel(self.model, dtype)
            return self._references[dtype]

    def weight(self, name: str) -> Tensor:
        """The weights [out, in] in the dtype of the model; not to be changed."""
        return self.layers[name].as_stored(self._weights[name].detach())

    def refuse(self, name: str, form: Format | str) -> Format:
        """The format, if a layer can have it. Raises ConfigError: there is no such layer or format,
        or the layer cannot be stored so."""
        if name not in self.layers:
            raise ConfigError(
                f"{name[:80]} is no layer of this model.",
                f"{next(iter(self.layers))} is one.",
                "Choose one of its layers.",
                "formats",
            )
        try:
            read = Format.parse(str(form))
        except ValueError as error:
            raise ConfigError(
                f"{str(form)[:40]!r} is not a format.",
                str(error),
                "Write 50%, 2:4 or int4-g64.",
                "formats",
            ) from error
        read.require_fit(name, self.weight(name).shape[1], name in self.outside)
        return read

    def score_of(self, pruner: str) -> Score:
        """By what layers are pruned at once, where a run would use `pruner`."""
        if pruner == "magnitude" or (pruner != "wanda" and self.calibration is None):
            return "magnitude"
        return "wanda"

    @torch.no_grad()
    def made(self, name: str, form: Format, score: Score) -> LiveWeight:
        """A layer in a format: in the dtype of the model, or codes."""
        W, width = self.weight(name), form.width
        if width and name in self.outside:
            space = embedding_search(width.bits)
            settings = QuantSettings(width.bits, width.group, "symmetric", space)
            return quantize_embedding(W, settings, self.scales)
        if form.pattern:
            W = masked(W, self._mask(name, form.pattern, score))
        if width is None:
            return W
        ranges = self.tables.find(key := ("ranges", name, width.group))
        if ranges is None or form.pattern:
            grouped = W.float().reshape(len(W), -1, width.group or W.shape[1])
            ranges = torch.stack([grouped.amin(-1), grouped.amax(-1)])
            if not form.pattern:
                self.tables.put(key, ranges)
        low, high = ranges
        return self.quantized(W.float(), group_scales(low, high, width.bits, self.dlqat.grid))

    def quantized(self, V: Tensor, grid: QuantGrid) -> QuantizedWeight:
        """`V` [out, in] on a grid, of which the stored precision is kept."""
        return QuantizedWeight(grid.stored(self.scales, self.dlqat.grid), grid.codes(V).byte())

    @property
    def scales(self) -> torch.dtype:
        """Of scales, and in a quantization run of all that is not quantized."""
        dtype: torch.dtype = getattr(torch, self.dlqat.stored)
        return dtype

    def prepare(self, formats: Mapping[str, Format], score: Score) -> Iterator[Progress]:
        """Make what these formats need and is not there yet: energies, ranks. The lock is free
        after each step, and what is done stays."""
        pruned = {name: form.pattern for name, form in formats.items() if form.pattern}
        if pruned and score == "wanda" and not self.energies:
            self._measuring = self._measuring or self.measure_inputs()
            while measuring := self._measuring:  # `yield from` would close what is begun
                self._measuring = None  # after an error the pass begins anew
                if step := next(measuring, None):
                    self._measuring = measuring
                    yield step
        for done, (name, pattern) in enumerate(pruned.items(), 1):
            if pattern.group <= LARGEST_GROUP:
                with self.lock:
                    if self.tables.find(_ranks(name, pattern, score)) is not None:
                        continue
                    self._mask(name, pattern, score)
                yield done, len(pruned), "Ranking the weights of layers"

    def _mask(self, name: str, pattern: Pattern, score: Score) -> Tensor:
        root, group = self.energy(name).sqrt() if score == "wanda" else None, pattern.group
        scores = WeightScores(self.weight(name), root)
        if group > LARGEST_GROUP:
            return keep_mask(scores.all(), pattern).bool()
        key = _ranks(name, pattern, score)
        return rank_mask(self.tables.get(key, lambda: rank_table(scores, group)), scores, pattern)

    @property
    def energies(self) -> Mapping[str, Tensor]:
        """Mean squares [in] of the inputs of each layer of the blocks; empty until all are
        measured."""
        return self._energies if len(self._energies) == len(self.in_blocks) else {}

    def know(self, energies: Mapping[str, Tensor]) -> None:
        """Take energies that were measured before, on the same text; others are not taken."""
        shapes = {name: (self.weight(name).shape[1],) for name in self.in_blocks}
        if {name: (*found.shape,) for name, found in energies.items()} == shapes:
            device = self.model.device
            self._energies = {name: found.to(device) for name, found in energies.items()}

    def energy(self, name: str) -> Tensor:
        """Mean square [in] of a layer's inputs in the dense model; all are measured when the first
        is asked for."""
        if name not in self._energies:
            for _ in self.measure_inputs():
                pass
        return self._energies[name]

    def measure_inputs(self) -> Iterator[Progress]:
        """One pass over the first segments of the calibration text, for the energies of all inputs.
        Raises ConfigError: there is none."""
        walk = self.walk(self.sds.batch, self.sds.precision, most=INSTANT)
        for block in range(self.blocks):
            with self.lock:
                linears = block_linears(self.model, block)
                weights = {module: x.read() for module, x in linears.items()}
                inputs = walk.inputs(block, weights, linears, StatisticsLevel.ENERGY)
                self._energies |= {linears[m].name: found.energy for m, found in inputs.items()}
                walk.advance(block, weights)
            yield block + 1, self.blocks, "Measuring the inputs of blocks"

    def require_text(self) -> Tensor:
        """The calibration text. Raises ConfigError: there is none."""
        if self.calibration is None:
            raise ConfigError(
                "There is no calibration text.",
                "This method needs the inputs of layers.",
                "Choose magnitude and RTN, or a text.",
                "calibration",
            )
        return self.calibration

    def walk(
        self,
        batch: int,
        precision: str,
        rest: torch.dtype | None = None,
        stop: Callable[[], None] = lambda: None,
        most: int | None = None,
    ) -> CalibrationWalk:
        """A pass over the calibration text, or its first segments."""
        calibration = self.require_text()[:most]
        dtype: torch.dtype = getattr(torch, resolve_dtype(precision, self.model.device))
        with self.lock:
            return CalibrationWalk(self.model, calibration, batch, dtype, rest, stop)


def _ranks(name: str, pattern: Pattern, score: Score) -> Hashable:
    """The key of a table."""
    return "ranks", name, score, pattern.group
