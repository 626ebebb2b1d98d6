"""The calibration text through the decoder blocks of a dense model, with weights as given: the same
hidden states, bit for bit, as in the passes of a run, which hold the model in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.models.block_forward import block_of_weights, open_stream
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.patching import with_data

Weights = Mapping[str, Tensor]  # module name in a block -> [out, in], float32


class CalibrationWalk:
    """One pass over the blocks with `ids` [segments, L], `batch` of them at a time, in `dtype`.
    `rest`: what is no matrix of a block is rounded to it; None: it stays as it is. `stop`: called
    before each batch; may raise to end the pass."""

    def __init__(
        self, model: PreTrainedModel, ids: Tensor, batch: int, dtype: torch.dtype,
        rest: torch.dtype | None, stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self._model, self._rest, self._stop = model, rest, stop
        _, *others = decoder_blocks(model)  # the first may be run once, to see what it returns
        inside = {id(p) for block in others for p in block.parameters()}
        with self._in_float32(p for p in model.parameters() if id(p) not in inside):
            self._stream = open_stream(model, ids, batch, dtype)

    @torch.no_grad()
    def inputs(
        self, block: int, weights: Weights, linears: Mapping[str, LinearWeight],
        level: StatisticsLevel,
    ) -> dict[str, InputStatistics]:  # fmt: skip
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
        """Rounded to `rest`; afterwards as they were."""
        return with_data({p: p.data.to(self._rest or p.dtype).float() for p in parameters})
