"""Profiles a model block by block: Grams of the dense model's inputs, candidates, their errors and
what they cost. A finished block is a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.block_walk import BlockWalk
from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.checkpoints import Checkpoints
from backend.models.block_forward import BlockStream, open_stream, run_block
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.hidden_states import HiddenStates, NewBatches
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.sensitivity.candidates import Solvers, candidates, fitting, output_error
from backend.sensitivity.formats import Format
from backend.sensitivity.measured import SensitivityMeter
from backend.sensitivity.profile import FIGURES
from backend.sensitivity.trace import DenseTrace, measure_fisher

GRADIENTS, FILE = "gradients", "fisher.safetensors"
BATCH = 4  # calibration segments a pass

Figures = NDArray[np.float32]
Record = Callable[[LinearWeight, Figures], None]


def load_fisher(dense: DenseTrace, checkpoints: Checkpoints, seed: int, reporter: Reporter) -> None:
    """Fill `dense.fisher`, from the checkpoint of an earlier attempt where there is one."""
    if folder := checkpoints.find(GRADIENTS):
        dense.fisher |= load_file(folder / FILE)
        return
    measure_fisher(dense, seed, reporter)
    with checkpoints.write(GRADIENTS) as draft:
        save_file({name: F.cpu() for name, F in dense.fisher.items()}, draft / FILE)


@dataclass
class SensitivityWalk(BlockWalk):
    """One pass over the blocks of the dense model.

    Attributes:
        calibration: [segments, L].
        measured: formats whose loss is measured; `meter` is None where there are none.
        record: is given the figures of a layer [figures, formats].
    """

    model: PreTrainedModel
    calibration: Tensor
    dense: DenseTrace
    formats: Sequence[Format]
    measured: frozenset[Format]
    meter: SensitivityMeter | None
    solvers: Solvers
    checkpoints: Checkpoints
    reporter: Reporter
    record: Record
    new: NewBatches = list
    stream: BlockStream = field(init=False)

    def run(self) -> None:
        """Profile every block that is not stored yet."""
        self.walk(len(decoder_blocks(self.model)))

    def is_stored(self, block: int) -> bool:
        return self.checkpoints.find(_name(block)) is not None

    def open(self) -> None:
        dtype = self.dense.stream.dtype
        self.stream = open_stream(self.model, self.calibration, BATCH, dtype, self.new)

    def replay(self, block: int) -> None:
        self.stream.advance(self._outputs(block))

    def solve(self, block: int) -> None:
        linears = block_linears(self.model, block)
        with InputCollector(linears, StatisticsLevel.GRAM) as collector:
            outputs = self._outputs(block)
            inputs = collector.finish()
        for module, linear in linears.items():
            stop_if_asked(self.reporter)
            self.record(linear, self._layer(block, module, linear, inputs[module]))
        with self.checkpoints.write(_name(block)) as draft:
            (draft / "block.json").write_text(json.dumps({"layers": [*linears]}))
        self.stream.advance(outputs)

    def report(self, block: int, solved: bool) -> None:
        blocks = len(decoder_blocks(self.model))
        self.reporter.progress(block + 1, blocks, at_block(block, blocks, "Layers alone"))

    def _outputs(self, block: int) -> HiddenStates:
        safe_point = partial(stop_if_asked, self.reporter)
        return run_block(self.model, self.stream, block, self.stream.hidden, safe_point)

    def _layer(
        self, block: int, module: str, linear: LinearWeight, inputs: InputStatistics
    ) -> Figures:
        """The figures of one layer [figures, formats]."""
        W, found = linear.read(), np.full((len(FIGURES), len(self.formats)), np.nan, np.float32)
        trials: dict[int, Tensor] = {}
        forms = fitting(self.formats, linear.columns)
        made = candidates(W, inputs, forms, self.solvers, linear.name, self.reporter.log)
        for form, V in made.items():
            at = self.formats.index(form)
            error = output_error(V - W, W, inputs.gram, self.dense.fisher[linear.name])
            found[:2, at] = error.relative, error.fisher
            if form in self.measured:
                trials[at] = V
        if self.meter and trials:
            measured = self.meter.measure(block, [{module: V} for V in trials.values()])
            for at, cost in zip(trials, measured, strict=True):
                found[2:, at] = cost.kl, cost.loss
        return found


def _name(block: int) -> str:
    return f"block-{block:03d}"


def usual_width(dense: DenseTrace) -> int:
    """Candidates that go through the network together: as many as keep the logits small."""
    vocabulary = dense.model.config.get_text_config().vocab_size
    logits = vocabulary * dense.ids.shape[1] * torch.finfo(torch.float32).bits // 8
    return max(1, min(8, 2**28 // logits))
