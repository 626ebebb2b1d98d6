"""Passes that reconstruct pruned blocks, on the hidden states of the reconstructed blocks so far:

y <- dense block(hidden of the dense model)
W_blocks = reconstruct(W_start, hidden, y)        hidden <- reconstructed block(hidden)"""

import torch
from torch import Tensor

from backend.metric_key import MetricKey
from backend.models.block_forward import open_stream
from backend.pruning.block_work import BlockWork, SDSRun
from backend.pruning.config import STAGE_LABELS, SDSConfig, SDSStage
from backend.pruning.passes.block_pass import BlockPass
from backend.reporter import at_block
from backend.training import block_reconstruction

UNITS = 2  # of work, per linear and epoch


class MaskedWeights:
    """The weights of pruned linears, by module: W = W_start + p s, with s = 0 where W_start is 0.

    Args:
        rate: of a step, relative to the sizes s of the weights.
    """

    def __init__(self, start: dict[str, Tensor], rate: float) -> None:
        self._start = start
        self._sizes = {
            module: block_reconstruction.sizes_of(W) * (W != 0) for module, W in start.items()
        }
        self.parameters = {module: torch.zeros_like(W) for module, W in start.items()}
        self.rates = dict.fromkeys(start, rate)

    def weights(self, parameters: block_reconstruction.Parameters) -> dict[str, Tensor]:
        """Module -> W [out, in]."""
        return {m: torch.addcmul(W, parameters[m], self._sizes[m]) for m, W in self._start.items()}


class ReconstructionPass(BlockPass):
    """Reconstructs every block of a stage.

    Attributes:
        name: the stage it makes, of which its checkpoints have the name.
        starts: the stages to start from; the first of them that the run makes is taken.
        hidden, teacher: the inputs [1, L, d] of the current block in the compressed and in the
            dense model, one per segment; the held-out ones last.
    """

    name: SDSStage
    starts: tuple[SDSStage, ...]

    def __init__(self, run: SDSRun) -> None:
        super().__init__(run)
        self.start = next(stage for stage in self.starts if stage in run.plan.stages)

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        return UNITS * config.reconstruct

    def open(self) -> None:
        run = self.run
        text = torch.cat([run.calibration, run.heldout]) if len(run.heldout) else run.calibration
        self.stream = open_stream(run.model, text, 1, run.dtype, run.new)
        self.hidden, self.stream.hidden = self.stream.hidden, []
        self.teacher = self.hidden

    def walk(self, blocks: int) -> None:
        super().walk(blocks)
        reports = [
            self.run.store.report(self.name, block).reconstruction for block in range(blocks)
        ]
        left = [report["left"] for report in reports if report]
        lowered = sum(share < 1 for share in left)
        if lowered < len(left):
            done = "changed nothing" if not lowered else f"changed {lowered} of {len(left)} blocks"
            text = f"{STAGE_LABELS[self.name]}: training {done}, as it did not lower the held-out "
            self.run.reporter.log(text + "error of the others." if lowered else text + "error.")

    def solve_block(self, block: int) -> None:
        work = BlockWork(self.run, self.stream, block, self.stored(SDSStage.DENSE, block))
        work.first = self.stored(SDSStage.FIRST, block)
        work.write(work.dense)
        self.teacher = work.forward(self.teacher)
        with work.timed("blocks"):
            masked = MaskedWeights(self.stored(self.start, block), self.config.reconstruct_rate)
            found = self._reconstruct(block, masked)
            weights = masked.weights(found.parameters)
        for module, W in weights.items():
            work.record(self.name, module, self.run.rounded(W))
        self._report(work, found)
        work.write(work.stages[self.name])
        self.hidden = work.forward(self.hidden)
        work.save(self.name)

    def replay(self, block: int) -> None:
        self.teacher = self.forward_stored(block, SDSStage.DENSE, self.teacher)
        self.hidden = self.forward_stored(block, self.name, self.hidden)

    def _reconstruct(
        self, block: int, masked: MaskedWeights
    ) -> block_reconstruction.Reconstruction:
        run, units = self.run, UNITS * len(masked.rates)
        return block_reconstruction.reconstruct(
            run.model,
            block_reconstruction.Examples(
                self.stream, block, self.hidden, self.teacher, len(run.calibration)
            ),
            masked,
            self.config.reconstruct,
            run.safe_point,
            lambda _: run.advance(units, at_block(block, run.blocks, "Reconstruction")),
        )

    def _report(self, work: BlockWork, found: block_reconstruction.Reconstruction) -> None:
        """Log what held-out text says of the block; nothing without such text, or if no layer of
        the block was pruned."""
        if not found.judged:
            return
        before, after = found.errors[0], found.errors[found.epoch]
        left = after / before if before else 1.0  # no error: a model with this very mask
        work.report.reconstruction = {"left": left, "factor": found.factor}
        key = MetricKey("reconstruction", self.name, axis="block")
        self.run.reporter.metric(key, left, work.block)
        where = at_block(work.block, self.run.blocks)
        self.run.reporter.log(f"{where}: {STAGE_LABELS[self.name]}. {found}")


class FirstReconstruction(ReconstructionPass):
    """Reconstructs the first pruning, from its fixed-mask control if the run makes that."""

    name = SDSStage.FIRST_BLOCKS
    starts = (SDSStage.CONTROL, SDSStage.FIRST)


class SDSReconstruction(ReconstructionPass):
    """Reconstructs the second pruning, from its adjusted form if the run makes that."""

    name = SDSStage.SDS_BLOCKS
    starts = (SDSStage.SDS, SDSStage.SECOND)
