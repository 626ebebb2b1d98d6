"""Passes over the decoder blocks with the calibration segments, one block at a time.

energies         dense model: mean square of the inputs of every linear
quantizer_pass   the model whose earlier blocks are already quantized
audit            dense model: what every stage changes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from backend.calibration.block_walk import BlockWalk
from backend.calibration.second_moments import InputStatistics, StatisticsLevel
from backend.models.blocks import LinearWeight
from backend.models.hidden_states import HiddenStates
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.dlqat.stage_store import block_name
from backend.reporter import REPLAY, Reporter, at_block, stop_if_asked

ENERGY = "energy"


def find_energies(run: DLQATRun, reporter: Reporter) -> dict[str, Tensor]:
    """Full name -> mean square of each input [in], in the dense model."""
    if not run.store.holds(ENERGY):
        stream, energies = run.open_stream(), dict[str, Tensor]()
        for block in range(run.blocks):
            reporter.progress(block, run.blocks, f"Input energies, block {block + 1}")
            inputs, hidden = run.collect_inputs(stream, block, StatisticsLevel.ENERGY, reporter)
            linears = run.of_block(block)
            energies |= {linears[m].name: x.energy.clone() for m, x in inputs.items()}
            stream.advance(hidden)
        run.store.save(ENERGY, energies)
    return run.store.tensors(ENERGY)


class RunPass(BlockWalk):
    """A pass over the decoder blocks with the calibration segments.

    Args:
        name: of its checkpoints.
    """

    def __init__(self, run: DLQATRun, name: str, label: str, reporter: Reporter) -> None:
        self.run, self.name, self.label, self.reporter = run, name, label, reporter

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(block_name(self.name, block))

    def open(self) -> None:
        self.stream = self.run.open_stream()

    def replay(self, block: int) -> None:
        self.stream.advance(self.run.forward(self.stream, block, self.reporter))

    def report(self, block: int, solved: bool) -> None:
        doing = self._doing(block) if solved else REPLAY
        self.reporter.progress(block + 1, self.run.blocks, doing)

    def collect_inputs(
        self,
        block: int,
        level: StatisticsLevel,
        linears: Mapping[str, LinearWeight] | None = None,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        return self.run.collect_inputs(self.stream, block, level, self.reporter, linears)

    def layers(
        self, block: int, linears: Mapping[str, LinearWeight] | None = None
    ) -> Iterator[LinearWeight]:
        """Some of the quantized linears of `block`, or all; report progress and check for
        cancellation."""
        whole = [*self.run.of_block(block)]
        for linear in (linears or self.run.of_block(block)).values():
            done = whole.index(linear.module) / len(whole)
            self.reporter.progress(block + done, self.run.blocks, self._doing(block))
            stop_if_asked(self.reporter)
            yield linear

    def _doing(self, block: int) -> str:
        return at_block(block, self.run.blocks, self.label)
