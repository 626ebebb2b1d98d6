"""What all stages of a DL-QAT run share: the model, its texts, and passes through a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.models.block_forward import BlockStream, open_stream, run_block
from backend.models.blocks import LinearWeight, decoder_blocks
from backend.models.hidden_states import HiddenStates
from backend.models.patching import swap_weights
from backend.quantization.bases import PLAIN, Basis
from backend.quantization.dlqat.config import DLQATConfig, DLQATStage
from backend.quantization.dlqat.stage_store import DLQATStageStore, stage_name
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.registry import QuantSettings
from backend.reporter import Reporter, stop_if_asked


@dataclass(frozen=True)
class DLQATRun:
    """One DL-QAT run.

    Attributes:
        model: dense; every replacement of its layers or weights is undone.
        linears: full name -> linear of the layers that are quantised.
        calibration: token ids [segments, L].
        input_ids, labels: training sequences [n, length]; labels of -100 are ignored.
        dtype: of the forward passes.
        dense: dtype of the weights where the quantised model is saved dense; None: it is packed.
    """

    model: PreTrainedModel
    linears: dict[str, LinearWeight]
    calibration: Tensor
    input_ids: Tensor
    labels: Tensor
    config: DLQATConfig
    dtype: torch.dtype
    store: DLQATStageStore
    seed: int
    dense: torch.dtype | None = None

    @property
    def blocks(self) -> int:
        return len(decoder_blocks(self.model))

    @property
    def stored(self) -> torch.dtype:
        """The dtype that scales are rounded to where they are saved."""
        dtype: torch.dtype = getattr(torch, self.config.stored)
        return dtype

    @property
    def dtype_of_rest(self) -> torch.dtype:
        """The dtype that everything but the quantised layers is saved in."""
        return self.dense or self.stored

    @property
    def settings(self) -> QuantSettings:
        """The grid the config asks for."""
        c = self.config
        return QuantSettings(c.bits, c.group_size, c.grid, c.space, c.keep_zeros)

    def of_block(self, block: int) -> dict[str, LinearWeight]:
        """Module name -> linear of the layers of `block` that are quantised."""
        return {x.module: x for x in self.linears.values() if x.block == block}

    def open_stream(self) -> BlockStream:
        """The hidden states of the calibration segments before block 0."""
        return open_stream(self.model, self.calibration, self.config.calibration_batch, self.dtype)

    def collect_inputs(
        self,
        stream: BlockStream,
        block: int,
        level: StatisticsLevel,
        reporter: Reporter,
        linears: Mapping[str, LinearWeight] | None = None,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run `block`; input statistics of its quantised linears by module, and its outputs.

        Args:
            linears: those to collect of, by module; None: all.
        """
        linears = self.of_block(block) if linears is None else linears
        with InputCollector(linears, level) as collector:
            outputs = self.forward(stream, block, reporter)
            return collector.finish(), outputs

    def forward(self, stream: BlockStream, block: int, reporter: Reporter) -> HiddenStates:
        """The outputs of `block`, with its current weights, for the hidden states of the stream."""
        return run_block(self.model, stream, block, stream.hidden, lambda: stop_if_asked(reporter))

    def quantize(self, W: Tensor, grid: QuantGrid, basis: Basis = PLAIN) -> QuantizedWeight:
        """Round `W` [out, in] to `grid`, and then that to the stored precision."""
        codes = grid.codes(W).to(torch.uint8)
        return QuantizedWeight(grid.stored(self.stored, self.config.grid), codes, basis)

    def weight(self, stage: str, linear: LinearWeight) -> Tensor:
        """The weight [out, in] of `linear` at `stage`, float32; the stage must be finished."""
        if stage == DLQATStage.DENSE:
            return linear.read()
        if stage != DLQATStage.LORA:
            W = self.store.quantized(stage, linear.name).dense()
            return W if self.dense is None else W.to(self.dense).to(W.dtype)
        low_rank = self.store.some(stage_name(stage), f"{linear.name}.")
        factor = self.config.alpha / self.config.rank
        return torch.addmm(linear.read(), low_rank["B"], low_rank["A"], alpha=factor)

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Temporarily replace weights by `weights`, [out, in] by full name."""
        linears = {name: self.linears[name] for name in weights}
        with swap_weights(
            {x.layer.get_parameter("weight"): x.as_stored(weights[n]) for n, x in linears.items()}
        ):
            yield
