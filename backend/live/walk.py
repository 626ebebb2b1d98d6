"""The calibration text through the decoder blocks of a dense model, with weights as given: the same
hidden states, bit for bit, as in the passes of a run, which hold the model in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.models.block_forward import block_of_weights, open_stream
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks

Weights = Mapping[str, Tensor]  # module name in a block -> [out, in], float32


class CalibrationWalk:
    """One pass over the blocks.

    Args:
        ids: [segments, L].
        batch: segments of a pass; `dtype`: of it.
        rest: what is no matrix of a block is rounded to it; None: it stays as it is.
        stop: called before each batch; may raise to end the pass.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, batch: int, dtype: torch.dtype,
        rest: torch.dtype | None, stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self._model, self._rest, self._stop = model, rest, stop
        inside = {id(p) for p in decoder_blocks(model).parameters()}
        outside = [p for p in model.parameters() if id(p) not in inside]
        with self._in_float32(outside):
            self._stream = open_stream(model, ids, batch, dtype)

    @torch.no_grad()
    def inputs(
        self, block: int, weights: Weights, linears: Mapping[str, LinearWeight],
        level: StatisticsLevel,
    ) -> dict[str, InputStatistics]:  # fmt: skip
        """What some of the linears of a block, which has these weights, are given; by module."""
        if level == StatisticsLevel.NOTHING or not linears:
            return dict.fromkeys(linears, InputStatistics())
        with InputCollector(linears, level) as collector:
            self._forward(block, weights)
            return collector.finish()

    @torch.no_grad()
    def advance(self, block: int, weights: Weights) -> None:
        """Go past a block with these weights."""
        self._stream.advance(self._forward(block, weights))

    def _forward(self, block: int, weights: Weights) -> list[Tensor]:
        linears = block_linears(self._model, block).values()
        matrices = {id(x.layer.get_parameter("weight")) for x in linears}
        others = [
            p for p in decoder_blocks(self._model)[block].parameters() if id(p) not in matrices
        ]
        outputs, stream = [], self._stream
        with (
            self._in_float32(others),
            block_of_weights(self._model, stream, block) as forward,
        ):
            for states, call in zip(stream.hidden, stream.calls[block], strict=True):
                self._stop()
                outputs.append(forward(weights, states, call))
        return outputs

    @contextmanager
    def _in_float32(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Rounded to `rest`; afterwards as they were."""
        own = [p.data for p in parameters]
        try:
            for p in parameters:
                p.data = p.data.to(self._rest or p.dtype).float()
            yield
        finally:
            for p, data in zip(parameters, own, strict=True):
                p.data = data
