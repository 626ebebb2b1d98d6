"""The pass that counts outliers, only for OWL, on the hidden states of the dense model: see owl."""

from collections.abc import Sequence

from torch import Tensor

from backend.calibration.second_moments import StatisticsLevel
from backend.pruning.block_work import StepTimer
from backend.pruning.config import SDSConfig, SDSPass
from backend.pruning.owl import OUTLIER_MULTIPLE
from backend.pruning.passes.block_pass import BlockPass
from backend.pruning.stage_store import BlockReport
from backend.reporter import at_block


class OutlierPass(BlockPass):
    """Count the outliers of every block of the dense model."""

    name = SDSPass.OUTLIERS

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        return 1

    def solve_block(self, block: int) -> None:
        run, linears = self.run, self.run.linears(block)
        timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        with timed("outliers"):
            planned = run.plan.layers
            modules = [m for m, x in linears.items() if planned[x.name].allocation == "owl"]
            inputs, self.hidden = run.collect_inputs(
                self.stream, block, modules, self.hidden, StatisticsLevel.ENERGY
            )
            scores = [linears[m].read().abs_().mul_(inputs[m].energy.sqrt()) for m in modules]
            report = BlockReport(outliers=outlier_share(scores, OUTLIER_MULTIPLE))
        report.seconds = dict(timed.seconds)
        run.store.save(self.name, block, {}, report)
        run.advance(len(linears), at_block(block, run.blocks, "Outliers"))

    def replay(self, block: int) -> None:
        self.hidden = self.run.forward(self.stream, block, self.hidden)


def outlier_share(scores: Sequence[Tensor], times: float) -> float:
    """Share of all entries above `times` the mean of their layer; 0 without entries."""
    count = sum(score.numel() for score in scores)
    return sum((score > times * score.mean()).sum().item() for score in scores) / max(count, 1)
