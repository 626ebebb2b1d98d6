"""Passes over the decoder blocks with the calibration segments, one block at a time.

EnergyPass       dense model: mean square of the inputs of every linear
QuantizerPass    the model whose earlier blocks are already quantized
BlockTraining    the model whose earlier blocks are already trained
AuditPass        dense model: what every stage changes
"""

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from backend.calibration.block_walk import BlockWalk
from backend.calibration.second_moments import InputCollector, InputStatistics, StatisticsLevel
from backend.models.block_forward import HiddenStates, even_batch, open_stream, run_block
from backend.models.blocks import LinearWeight
from backend.quantization.config import CALIBRATION_BATCH
from backend.quantization.dlqat.run import DLQATRun
from backend.reporter import REPLAY, Reporter, at_block, stop_if_asked
from backend.training.stage_store import block_name

ENERGY = "energy"


class RunPass(BlockWalk):
    """A pass over the decoder blocks with the calibration segments; `name`: of its checkpoints."""

    batch = CALIBRATION_BATCH  # segments

    def __init__(self, run: DLQATRun, name: str, label: str, reporter: Reporter) -> None:
        self.run, self.name, self.label, self.reporter = run, name, label, reporter
        self.calibration = run.calibration

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(block_name(self.name, block))

    def open(self) -> None:
        run = self.run
        batch = even_batch(run.model, len(self.calibration), self.batch)
        self.stream = open_stream(run.model, self.calibration, batch, run.dtype)

    def replay(self, block: int) -> None:
        self.stream.advance(self.forward(block, self.stream.hidden))

    def report(self, block: int, solved: bool) -> None:
        doing = self._doing(block) if solved else REPLAY
        self.reporter.progress(block + 1, self.run.blocks, doing)

    def forward(
        self, block: int, hidden: HiddenStates, until: Collection[nn.Module] = ()
    ) -> HiddenStates:
        """The outputs of `block`, with its current weights; `until`: see `run_block`."""
        model, stream = self.run.model, self.stream
        return run_block(model, stream, block, hidden, lambda: stop_if_asked(self.reporter), until)

    def collect_inputs(
        self,
        block: int,
        level: StatisticsLevel,
        linears: Mapping[str, LinearWeight],
        whole: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run `block`; input statistics of some linears by module, and its outputs, if it is run to
        its end (`whole`)."""
        until = [] if whole else [linear.layer for linear in linears.values()]
        with InputCollector(linears, level) as collector:
            outputs = self.forward(block, self.stream.hidden, until)
            return collector.finish(), outputs

    def layers(self, block: int, linears: Mapping[str, LinearWeight]) -> Iterator[LinearWeight]:
        """Some of the quantized linears of `block`; report progress and check for
        cancellation."""
        whole = [*self.run.of_block(block)]
        for linear in linears.values():
            done = whole.index(linear.module) / len(whole)
            self.reporter.progress(block + done, self.run.blocks, self._doing(block))
            stop_if_asked(self.reporter)
            yield linear

    def _doing(self, block: int) -> str:
        return at_block(block, self.run.blocks, self.label)


class EnergyPass(RunPass):
    """Stores the mean square of every input [in] of the dense model, by module."""

    def solve(self, block: int) -> None:
        linears = self.run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.ENERGY, linears)
        self.stream.advance(hidden)
        energies = {module: x.energy.clone() for module, x in inputs.items()}
        self.run.store.save(block_name(ENERGY, block), energies)
