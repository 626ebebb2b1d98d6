"""Layers as a run makes them, behind the instant answer: block by block, each on what the blocks
before it leave.

    1   prune            as the first stage of a Sparse-Dense-Sparse run
    2   quantize         as the stage of a post-training quantizer in a quantization run

What has both is pruned, in the whole model, and then quantized, as by two runs one after the other.
Layers that are not chosen stay as they are, and the embedding as in the dense model."""

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

DAMPING = 0.01  # of a quantization run
QUIET = SilentReporter().log
FAILURE = ("refined", "Use more calibration text, or choose Wanda and RTN.")
Solved = tuple[Tensor, LiveWeight | None]  # what the next blocks see; the layer, if it is final


@dataclass
class Refinement:
    """One pass or two. Raises ConfigError: the quantizer is not one that works layer by layer on
    plain inputs.

    Args:
        formats: full name of a layer of a block -> its format, of those to refine.
        weight: the weights [out, in], float32, of the others.
        stop: may raise to end a pass.
    """

    dense: DenseModel
    formats: Mapping[str, Format]
    pruner: str
    quantizer: str
    weight: Callable[[str], Tensor]
    stop: Callable[[], None]
    _pruned: dict[str, Tensor] = field(default_factory=dict, init=False)  # to be quantized
    _final: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        method = QUANTIZERS[self.quantizer]
        if method.sequential or method.bases is not plain_bases:
            raise ConfigError(
                f"{STAGE_LABELS[self.quantizer]} is made by runs only.",
                "It changes the order or the basis of inputs.",
                "Choose GPTQ or RTN.",
                "quantizer",
            )

    def blocks(self) -> Iterator[tuple[str, dict[str, LiveWeight]]]:
        """What is done, and full name -> weights of the layers that are final, after each block."""
        pruned = [name for name, form in self.formats.items() if form.pattern]
        quantized = [name for name, form in self.formats.items() if form.width]
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
        doing: str,
        names: Collection[str],
        level: StatisticsLevel,
        solve: Callable[[str, Tensor, InputStatistics], Solved],
        batch: int,
        precision: str,
        rest: torch.dtype | None,
    ) -> Iterator[tuple[str, dict[str, LiveWeight]]]:
        dense, last = self.dense, max(self.dense.layers[name].block for name in names)
        walk = dense.walk(batch, precision, rest, self.stop) if level else None
        for block in range(last + 1):
            with dense.lock, torch.no_grad():
                linears = block_linears(dense.model, block)
                weights = {m: self._start(x, x.name in names, rest) for m, x in linears.items()}
                chosen = {m: x for m, x in linears.items() if x.name in names}
                inputs = dict.fromkeys(chosen, InputStatistics())
                if walk and chosen:
                    inputs = walk.inputs(block, weights, chosen, level)
                final: dict[str, LiveWeight] = {}
                for module, linear in chosen.items():
                    self.stop()
                    weights[module], kept = solve(linear.name, weights[module], inputs[module])
                    if kept is not None:
                        final[linear.name] = kept
                self._final |= final.keys()
                if walk and block < last:
                    walk.advance(block, weights)
            yield at_block(block, dense.blocks, doing), final

    def _start(self, linear: LinearWeight, chosen: bool, rest: torch.dtype | None) -> Tensor:
        """The weights of a layer before it is worked on."""
        if linear.name in self._pruned:
            return self._pruned[linear.name].float()
        own = linear.name in self.formats and linear.name not in self._final
        W = linear.read() if own else self.weight(linear.name)
        return W if chosen or rest is None else W.to(rest).float()

    def _prune(self, name: str, W: Tensor, inputs: InputStatistics) -> Solved:
        form, dtype = self.formats[name], self.dense.model.dtype
        assert form.pattern is not None
        prune = partial(PRUNERS[self.pruner].prune, W, inputs, form.pattern)
        V = search_damping(prune, self.dense.sds.damping, QUIET, name, FAILURE).to(dtype)
        if form.width:
            self._pruned[name] = V
        return V.float(), None if form.width else V

    def _quantize(self, name: str, W: Tensor, inputs: InputStatistics) -> Solved:
        form, config = self.formats[name], self.dense.dlqat
        assert form.width is not None
        zeros = form.pattern is not None and config.grid != "offset"
        settings = QuantSettings(
            form.width.bits, form.width.group, config.grid, config.space, zeros
        )
        quantize = partial(QUANTIZERS[self.quantizer].quantize, W, inputs, settings)
        V, grid = search_damping(quantize, DAMPING, QUIET, name, FAILURE)
        return grid.nearest(V), self.dense.quantized(V, grid)
