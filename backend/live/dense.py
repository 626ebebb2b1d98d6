"""Dense model with cached tables from which layers in any format are made instantly.

    percentage, n:m     magnitude, or Wanda with the input energies of the dense model; see `ranks`
    bits                rounding to nearest on a min-max grid, with cached ranges of the groups
    both                pruning, then rounding
    embedding, head     rounding as in a run

Methods that need no inputs (magnitude, RTN) give the same weights as the first stage of a run, bit
for bit. Methods that need the inputs left by earlier compressed layers are in `refinement`. The
cache of tables has a memory limit and drops the least recently used tables.

`CalibrationWalk` runs the calibration text through the blocks with given weights. Hidden states are
equal to those of a run, which holds the model in float32, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.decoding.target_model import fingerprint
from backend.errors import ConfigError, ModelError
from backend.live.ranks import LARGEST_GROUP, WeightScores, rank_mask, rank_table
from backend.live.running import LiveWeight, RunningModel, layers_of
from backend.models.block_forward import balanced_batch_size, block_as_function, open_stream
from backend.models.blocks import (
    LinearWeight,
    block_linears,
    decoder_blocks,
    resolve_dtype,
    swap_data,
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
TABLE_BYTES = 2**30  # default memory limit of the tables
INSTANT_SEGMENTS = 8  # calibration segments that measure the inputs for instant pruning
IDENTITY_LENGTH = 12  # hexadecimal digits

Progress: TypeAlias = tuple[float, float, str]  # steps done, total steps, activity
Score: TypeAlias = Literal["magnitude", "wanda"]


class TableCache:
    """Least-recently-used cache of tensors with a memory limit.

    The newest table stays even if it exceeds the limit.

    Args:
        limit_bytes: memory limit.

    Attributes:
        nbytes: bytes of all cached tables.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._tables: dict[Hashable, Tensor] = {}  # the most recently used table comes last

    def find(self, key: Hashable) -> Tensor | None:
        """Look up a table; None if it is not in the cache."""
        if key not in self._tables:
            return None
        table = self._tables[key] = self._tables.pop(key)
        return table

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Look up a table, or make and cache it."""
        table = self.find(key)
        return self.put(key, make()) if table is None else table

    def put(self, key: Hashable, table: Tensor) -> Tensor:
        """Cache a table, and drop the least recently used tables above the limit."""
        if key in self._tables:
            self.nbytes -= self._tables.pop(key).nbytes
        self._tables[key] = table
        self.nbytes += table.nbytes
        while self.nbytes > self.limit_bytes and len(self._tables) > 1:
            self.nbytes -= self._tables.pop(next(iter(self._tables))).nbytes
        return table


class CalibrationWalk:
    """One pass of calibration text over the blocks.

    Args:
        model: dense model.
        ids: token ids [segments, L].
        batch: batch size of a run, see `balanced_batch_size`.
        dtype: dtype of the forward passes.
        stored_dtype: dtype to which parameters other than the matrices of blocks are rounded; None
            for no rounding.
        stop: called before each linear; may raise to stop.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        batch: int,
        dtype: torch.dtype,
        stored_dtype: torch.dtype | None,
        stop: Callable[[], None],
    ) -> None:
        self._model, self._stored_dtype, self._stop = model, stored_dtype, stop
        # `open_stream` may run the first block, so its parameters are needed in float32, too.
        _, *later_blocks = decoder_blocks(model)
        excluded = {id(p) for block in later_blocks for p in block.parameters()}
        with self._in_float32(p for p in model.parameters() if id(p) not in excluded):
            self._stream = open_stream(
                model, ids, balanced_batch_size(model, len(ids), batch), dtype
            )

    @torch.no_grad()
    def collect_inputs(
        self,
        block: int,
        weights: Weights,
        linears: Mapping[str, LinearWeight],
        level: StatisticsLevel,
    ) -> dict[str, InputStatistics]:
        """Run a block with the given weights and collect input statistics of some of its linears.

        Returns:
            module name -> statistics.
        """
        with InputCollector(linears, level) as collector:
            self._forward(block, weights)
            return collector.finish()

    @torch.no_grad()
    def advance(self, block: int, weights: Weights) -> None:
        """Advance the hidden states past a block with the given weights."""
        self._stream.advance(self._forward(block, weights))

    def _forward(self, block: int, weights: Weights) -> list[Tensor]:
        linears, outputs = block_linears(self._model, block).values(), list[Tensor]()
        matrices = {id(x.layer.get_parameter("weight")) for x in linears}
        parameters, stream = decoder_blocks(self._model)[block].parameters(), self._stream
        with (
            self._in_float32(p for p in parameters if id(p) not in matrices),
            block_as_function(self._model, stream, block) as forward,
            ExitStack() as stops,
        ):
            for x in linears:
                stops.callback(x.layer.register_forward_pre_hook(lambda *_: self._stop()).remove)
            for states, call in zip(stream.hidden, stream.calls[block], strict=True):
                outputs.append(forward(weights, states, call))
        return outputs

    def _in_float32(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Context in which parameters are rounded to `stored_dtype` and converted to float32."""
        return swap_data({p: p.data.to(self._stored_dtype or p.dtype).float() for p in parameters})


class DenseModel:
    """Dense model whose weights, tables and lock are shared by live models. Its weights never
    change.

    Args:
        model: model in the dtype of its files, on the compute device.
        calibration: token ids [segments, L]; None disables methods that need inputs.
        sds: options of pruning, except for pattern and method.
        dlqat: options of quantization, except for width and method.
        table_bytes: memory limit of the tables.

    Attributes:
        blocks: number of decoder blocks.
        layers: full name -> layer; layers of the blocks in order, then embedding and untied head.
        outside: names of the embedding and the untied head.
        identity: hexadecimal fingerprint of the weights.
        lock: lock held during all computations.
        tables: cached tables.

    Raises:
        ModelError: the model has no layers that can be changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Tensor | None = None,
        sds: SDSConfig | None = None,
        dlqat: DLQATConfig | None = None,
        table_bytes: int = TABLE_BYTES,
    ) -> None:
        self.model, self.calibration = model.requires_grad_(False), calibration
        self.sds, self.dlqat = sds or SDSConfig(), dlqat or DLQATConfig()
        self.blocks, self.lock = len(decoder_blocks(model)), threading.RLock()
        self.layers = layers_of(model)
        # Keep references: while a block runs with other weights, its modules hold those weights.
        self._weights = {name: x.layer.get_parameter("weight") for name, x in self.layers.items()}
        self.outside = [name for name, x in self.layers.items() if x.block < 0]
        if len(self.outside) == len(self.layers):
            raise ModelError(
                "The model cannot be changed live.",
                "Its blocks have no linear layers.",
                "Choose another model.",
                "model",
            )
        self.identity = fingerprint(model)[:IDENTITY_LENGTH]
        self.tables = TableCache(table_bytes)
        self._energies: dict[str, Tensor] = {}  # full layer name -> energy of its inputs [in]
        self._measuring: Iterator[Progress] | None = None
        self._references: dict[torch.dtype, RunningModel] = {}

    @property
    def in_blocks(self) -> list[str]:
        """Names of the layers of the blocks."""
        return [name for name, x in self.layers.items() if x.block >= 0]

    @property
    def nbytes(self) -> int:
        """Bytes of weights, tables and reference models."""
        references = sum(x.nbytes for x in [*self._references.values()])
        return sum(p.nbytes for p in self.model.parameters()) + self.tables.nbytes + references

    def reference(self, dtype: torch.dtype) -> RunningModel:
        """Dense model in the decoder and dtype of a live model, for comparisons."""
        with self.lock:
            if dtype not in self._references:
                self._references[dtype] = RunningModel(self.model, dtype)
            return self._references[dtype]

    def weight(self, name: str) -> Tensor:
        """Weights [out, in] of a layer in the dtype of the model. Callers must not modify them."""
        return self.layers[name].as_stored(self._weights[name].detach())

    def checked_format(self, name: str, fmt: Format | str) -> Format:
        """Parse a format and check that a layer can have it.

        Raises:
            ConfigError: the layer or format does not exist, or the format does not fit the layer.
        """
        if name not in self.layers:
            raise ConfigError(
                f"{name[:80]} is not a layer of this model.",
                f"{next(iter(self.layers))} is the first of its layers.",
                "Choose one of its layers.",
                "formats",
            )
        try:
            parsed = Format.parse(str(fmt))
        except ValueError as error:
            raise ConfigError(
                f"{str(fmt)[:40]!r} is not a format.",
                str(error),
                "Write 50%, 2:4 or int4-g64.",
                "formats",
            ) from error
        parsed.require_fit(name, self.weight(name).shape[1], name in self.outside)
        return parsed

    def score_of(self, pruner: str) -> Score:
        """Score for instant pruning in place of `pruner`."""
        if pruner == "magnitude" or (pruner != "wanda" and self.calibration is None):
            return "magnitude"
        return "wanda"

    @torch.no_grad()
    def make_layer(self, name: str, fmt: Format, score: Score) -> LiveWeight:
        """Make a layer in a format: weights in the dtype of the model, or codes."""
        W, width = self.weight(name), fmt.width
        if width and name in self.outside:
            range_search = embedding_search(width.bits)
            settings = QuantSettings(width.bits, width.group, "symmetric", range_search)
            return quantize_embedding(W, settings, self.scales)
        if fmt.pattern:
            W = masked(W, self._mask(name, fmt.pattern, score))
        if width is None:
            return W
        ranges = self.tables.find(key := ("ranges", name, width.group))
        if ranges is None or fmt.pattern:
            groups = W.float().reshape(len(W), -1, width.group or W.shape[1])
            ranges = torch.stack([groups.amin(-1), groups.amax(-1)])
            if not fmt.pattern:
                self.tables.put(key, ranges)
        low, high = ranges
        return self.quantized(W.float(), group_scales(low, high, width.bits, self.dlqat.grid))

    def quantized(self, V: Tensor, grid: QuantGrid) -> QuantizedWeight:
        """Quantize `V` [out, in] on a grid, and round the grid to its stored precision."""
        return QuantizedWeight(grid.stored(self.scales, self.dlqat.grid), grid.codes(V).byte())

    @property
    def scales(self) -> torch.dtype:
        """Stored dtype of scales and, in a quantization run, of all other parameters."""
        dtype: torch.dtype = getattr(torch, self.dlqat.saved_precision)
        return dtype

    def prepare(self, formats: Mapping[str, Format], score: Score) -> Iterator[Progress]:
        """Compute missing input energies and rank tables for some formats.

        The lock is free between steps. If the caller stops, finished steps remain."""
        patterns = {name: fmt.pattern for name, fmt in formats.items() if fmt.pattern}
        if patterns and score == "wanda" and not self.energies:
            self._measuring = self._measuring or self.measure_inputs()
            # `yield from` would close the pass if the caller stops; the next call continues it.
            while measuring := self._measuring:
                self._measuring = None  # after an error, the pass starts again
                if step := next(measuring, None):
                    self._measuring = measuring
                    yield step
        for done, (name, pattern) in enumerate(patterns.items(), 1):
            if pattern.group <= LARGEST_GROUP:
                with self.lock:
                    if self.tables.find(_ranks_key(name, pattern, score)) is not None:
                        continue
                    self._mask(name, pattern, score)
                yield done, len(patterns), "Ranking the weights of layers"

    def _mask(self, name: str, pattern: Pattern, score: Score) -> Tensor:
        root, group = self.energy(name).sqrt() if score == "wanda" else None, pattern.group
        scores = WeightScores(self.weight(name), root)
        if group > LARGEST_GROUP:
            return keep_mask(scores.all(), pattern).bool()
        key = _ranks_key(name, pattern, score)
        return rank_mask(self.tables.get(key, lambda: rank_table(scores, group)), scores, pattern)

    @property
    def energies(self) -> Mapping[str, Tensor]:
        """Full layer name -> mean square [in] of its inputs, for the layers of the blocks; empty
        until all are measured."""
        return self._energies if len(self._energies) == len(self.in_blocks) else {}

    def restore_energies(self, energies: Mapping[str, Tensor]) -> None:
        """Restore saved input energies if their names and shapes match."""
        shapes = {name: (self.weight(name).shape[1],) for name in self.in_blocks}
        if {name: (*energy.shape,) for name, energy in energies.items()} == shapes:
            device = self.model.device
            self._energies = {name: energy.to(device) for name, energy in energies.items()}

    def energy(self, name: str) -> Tensor:
        """Mean square [in] of a layer's inputs in the dense model. The first call measures all
        layers."""
        if name not in self._energies:
            for _ in self.measure_inputs():
                pass
        return self._energies[name]

    def measure_inputs(self) -> Iterator[Progress]:
        """Measure the energies of all inputs in one pass over the first `INSTANT_SEGMENTS` segments
        of the calibration text; see `require_text` for errors."""
        walk = self.walk(self.sds.batch, self.sds.precision, segments=INSTANT_SEGMENTS)
        for block in range(self.blocks):
            with self.lock:
                linears = block_linears(self.model, block)
                weights = {module: x.read() for module, x in linears.items()}
                inputs = walk.collect_inputs(block, weights, linears, StatisticsLevel.ENERGY)
                self._energies |= {linears[m].name: stats.energy for m, stats in inputs.items()}
                walk.advance(block, weights)
            yield block + 1, self.blocks, "Measuring the inputs of blocks"

    def require_text(self) -> Tensor:
        """Return the calibration text.

        Raises:
            ConfigError: there is no calibration text.
        """
        if self.calibration is None:
            raise ConfigError(
                "There is no calibration text.",
                "This method needs the inputs of layers.",
                "Choose magnitude and RTN, or add a calibration text.",
                "calibration",
            )
        return self.calibration

    def walk(
        self,
        batch: int,
        precision: str,
        stored_dtype: torch.dtype | None = None,
        stop: Callable[[], None] = lambda: None,
        segments: int | None = None,
    ) -> CalibrationWalk:
        """Start a pass of the calibration text, or of its first `segments`, over the blocks; see
        `CalibrationWalk` for the other arguments, and `require_text` for errors."""
        calibration = self.require_text()[:segments]
        dtype: torch.dtype = getattr(torch, resolve_dtype(precision, self.model.device))
        with self.lock:
            return CalibrationWalk(self.model, calibration, batch, dtype, stored_dtype, stop)


def _ranks_key(name: str, pattern: Pattern, score: Score) -> Hashable:
    """Key of a table of ranks in the cache."""
    return "ranks", name, score, pattern.group
