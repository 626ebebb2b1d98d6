"""Refinement of layers after the instant preview, with the same results as a run.

Layers are compressed block by block; the inputs of a block are the outputs of the compressed blocks
before it. There are two passes over the model:

    1   prune            like the first stage of a Sparse-Dense-Sparse run
    2   quantize         like a post-training quantizer in a quantization run

Layers that are both pruned and quantized go through both passes, like two runs in sequence. Other
layers keep their weights, and the embedding is that of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.errors import ConfigError
from backend.linalg.gram import search_damping
from backend.live.dense import DenseModel
from backend.live.running import LiveWeight
from backend.models.blocks import LinearWeight, block_linears
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization.config import CALIBRATION_BATCH, STAGE_LABELS
from backend.quantization.plan import QuantSettings
from backend.quantization.registry import QUANTIZERS, plain_bases
from backend.reporter import SilentReporter, at_block
from backend.sensitivity.profile import Format

DAMPING = 0.01  # initial damping, as in a quantization run
QUIET = SilentReporter().log
# Participle and advice of the error if no damping makes a Hessian positive definite.
FAILURE = ("refined", "Use more calibration text, or choose Wanda and RTN.")
# Weights [out, in] for the inputs of later blocks, and the final layer; None if a later pass
# changes it.
Solved = tuple[Tensor, LiveWeight | None]


@dataclass
class Refinement:
    """Refinement of some layers in one or two passes.

    Args:
        dense: dense model.
        formats: full layer name -> format, for the layers of blocks to refine.
        pruner: name of the pruner.
        quantizer: name of the quantizer.
        weight: function from the full name of any other layer to its weights [out, in], float32.
        stop: called between batches and layers; may raise to stop.

    Raises:
        ConfigError: the quantizer does not work layer by layer on unmodified inputs.
    """

    dense: DenseModel
    formats: Mapping[str, Format]
    pruner: str
    quantizer: str
    weight: Callable[[str], Tensor]
    stop: Callable[[], None]
    _pruned: dict[str, Tensor] = field(
        default_factory=dict, init=False
    )  # pruned layers that will be quantized
    _final: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        method = QUANTIZERS[self.quantizer]
        if method.sequential or method.bases is not plain_bases:
            raise ConfigError(
                f"{STAGE_LABELS[self.quantizer]} is available in runs only.",
                "It changes the order or the basis of inputs.",
                "Choose GPTQ or RTN.",
                "quantizer",
            )

    def blocks(self) -> Iterator[tuple[str, dict[str, LiveWeight]]]:
        """Refine block by block. Yield the progress in words, and full name -> weights for final
        layers of the block."""
        pruned = [name for name, fmt in self.formats.items() if fmt.pattern]
        quantized = [name for name, fmt in self.formats.items() if fmt.width]
        if pruned:
            needs = PRUNERS[self.pruner].needs
            sds = self.dense.sds
            yield from self._pass(
                "Pruning", pruned, needs, self._prune, sds.batch, sds.precision, None
            )
        if quantized:
            needs = StatisticsLevel[QUANTIZERS[self.quantizer].needs.upper()]
            settings = CALIBRATION_BATCH, self.dense.dlqat.precision, self.dense.scales
            yield from self._pass("Quantization", quantized, needs, self._quantize, *settings)

    def _pass(
        self,
        activity: str,
        names: Collection[str],
        level: StatisticsLevel,
        solve: Callable[[str, Tensor, InputStatistics], Solved],
        batch: int,
        precision: str,
        stored_dtype: torch.dtype | None,
    ) -> Iterator[tuple[str, dict[str, LiveWeight]]]:
        """Apply `solve` to the layers `names`, block by block; see `blocks`."""
        dense, last = self.dense, max(self.dense.layers[name].block for name in names)
        walk = dense.walk(batch, precision, stored_dtype, self.stop) if level else None
        for block in range(last + 1):
            with dense.lock, torch.no_grad():
                linears = block_linears(dense.model, block)
                weights = {
                    module: self._initial_weights(linear, linear.name in names, stored_dtype)
                    for module, linear in linears.items()
                }
                targets = {m: x for m, x in linears.items() if x.name in names}
                inputs = dict.fromkeys(targets, InputStatistics())
                if walk and targets:
                    inputs = walk.collect_inputs(block, weights, targets, level)
                final: dict[str, LiveWeight] = {}
                for module, linear in targets.items():
                    self.stop()
                    weights[module], layer = solve(linear.name, weights[module], inputs[module])
                    if layer is not None:
                        final[linear.name] = layer
                self._final |= final.keys()
                if walk and block < last:
                    walk.advance(block, weights)
            yield at_block(block, dense.blocks, activity), final

    def _initial_weights(
        self, linear: LinearWeight, is_target: bool, stored_dtype: torch.dtype | None
    ) -> Tensor:
        """Return the float32 weights of a layer before a pass, rounded to `stored_dtype` if the
        layer is no target of the pass."""
        if linear.name in self._pruned:
            return self._pruned[linear.name].float()
        starts_dense = linear.name in self.formats and linear.name not in self._final
        W = linear.read() if starts_dense else self.weight(linear.name)
        return W if is_target or stored_dtype is None else W.to(stored_dtype).float()

    def _prune(self, name: str, W: Tensor, inputs: InputStatistics) -> Solved:
        fmt, dtype = self.formats[name], self.dense.model.dtype
        assert fmt.pattern is not None
        prune = partial(PRUNERS[self.pruner].prune, W, inputs, fmt.pattern)
        V = search_damping(prune, self.dense.sds.damping, QUIET, name, FAILURE).to(dtype)
        if fmt.width:
            self._pruned[name] = V
        return V.float(), None if fmt.width else V

    def _quantize(self, name: str, W: Tensor, inputs: InputStatistics) -> Solved:
        fmt, config = self.formats[name], self.dense.dlqat
        assert fmt.width is not None
        keep_zeros = fmt.pattern is not None and config.grid != "offset"
        settings = QuantSettings(
            fmt.width.bits, fmt.width.group, config.grid, config.range_search, keep_zeros
        )
        quantize = partial(QUANTIZERS[self.quantizer].quantize, W, inputs, settings)
        V, grid = search_damping(quantize, DAMPING, QUIET, name, FAILURE)
        return grid.nearest(V), self.dense.quantized(V, grid)
