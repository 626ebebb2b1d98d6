"""Passes of SDS over the decoder blocks: an outlier count for OWL, two pruning passes, and block
reconstructions.

First pass, on the hidden states of the sparse model so far:

    H  = grams of the dense block      W_sparse  = prune(W_dense, H)
    H' = grams of the sparse block     W_redense = redense(W_sparse, W_dense, H')
    hidden <- sparse block(hidden)     W_control = adjust(W_sparse, W_dense, H'), mask fixed

Second pass, on the hidden states of the second sparse model so far:

    H  = grams of the re-dense block   W_second  = prune(W_redense, H)
    H' = grams of the second block     W_sds     = adjust(W_second, W_dense, H')
    hidden <- second block(hidden)     without the adjustment

Reconstruction, on the hidden states of the reconstructed blocks so far:

    y <- dense block(hidden of the dense model)
    W_blocks = reconstruct(W_start, hidden, y)        hidden <- reconstructed block(hidden)
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from backend.calibration.second_moments import DenseReference, StatisticsLevel
from backend.metric_key import MetricKey
from backend.models.block_forward import HiddenStates, balanced_batch_size, open_stream
from backend.models.block_offload import resident
from backend.pruning.block_work import BlockWork, SDSRun, StepTimer
from backend.pruning.config import STAGE_LABELS, SDSConfig, SDSPass, SDSStage
from backend.pruning.plan import OUTLIER_MULTIPLE
from backend.pruning.redense import redense
from backend.pruning.stage_store import BlockReport, Weights
from backend.reporter import REPLAY, at_block
from backend.training import block_reconstruction
from backend.training.stage_store import BlockWalk

UNITS_PER_EPOCH = 2  # units of work of a block reconstruction, per linear


class BlockPass(BlockWalk):
    """One pass over all blocks.

    Attributes:
        name: name of its checkpoints.
        run: state of the run.
        config: options of the run.
        stream: arguments of the forward passes.
        hidden: inputs [b, L, d] of the current block.
    """

    name: str

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        """Units of work per linear."""
        return 2

    def __init__(self, run: SDSRun) -> None:
        self.run, self.config = run, run.config

    def walk(self, blocks: int) -> None:
        super().walk(blocks)
        self.run.wait_for_storage()

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(self.name, block)

    def open(self) -> None:
        run = self.run
        batch = balanced_batch_size(run.model, len(run.calibration), self.config.batch)
        self.stream = open_stream(run.model, run.calibration, batch, run.dtype, run.new_batches)
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def solve(self, block: int) -> None:
        with resident(self.run.model, block):
            self.solve_block(block)

    @abstractmethod
    def solve_block(self, block: int) -> None:
        """Compute and store the stages of `block`, and advance the hidden states past it."""

    def report(self, block: int, solved: bool) -> None:
        if not solved:
            self.run.advance(self.units(self.config) * len(self.run.linears(block)), REPLAY)

    def load_weights(self, stage: SDSStage, block: int) -> Weights:
        """Load the stored weights of `block` at `stage`."""
        return self.run.store.weights(stage, block, str(self.run.model.device))

    def forward_stored(self, block: int, stage: SDSStage, hidden: HiddenStates) -> HiddenStates:
        """Run `block` with its stored weights at `stage` on `hidden` and return its outputs."""
        with resident(self.run.model, block):
            linears = self.run.linears(block)
            for module, W in self.load_weights(stage, block).items():
                linears[module].write(W)
            return self.run.forward(self.stream, block, hidden)


class OutlierPass(BlockPass):
    """Pass that counts the outliers of every block of the dense model."""

    name = SDSPass.OUTLIERS

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        return 1

    def solve_block(self, block: int) -> None:
        run, linears = self.run, self.run.linears(block)
        timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        with timed("outliers"):
            groups = run.plan.layers
            modules = [m for m, x in linears.items() if groups[x.name].allocation == "owl"]
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


def outlier_share(scores: Sequence[Tensor], multiple: float) -> float:
    """Share of all scores above `multiple` times the mean of their layer; 0 without scores."""
    count = sum(score.numel() for score in scores)
    outliers = sum((score > multiple * score.mean()).sum().item() for score in scores)
    return outliers / max(count, 1)


class PruningPass(BlockPass):
    """Pass that prunes; the hidden states come from the pruned blocks.

    Attributes:
        stage: stage of the pruned weights.
    """

    stage: SDSStage

    def replay(self, block: int) -> None:
        self.hidden = self.forward_stored(block, self.stage, self.hidden)


class FirstPass(PruningPass):
    """Pass with the first pruning, its control, and the re-dense step."""

    name, stage = SDSPass.FIRST, SDSStage.FIRST

    def solve_block(self, block: int) -> None:
        stages = self.run.plan.stages
        has_redense = SDSStage.REDENSE in stages
        dense = {module: x.read() for module, x in self.run.linears(block).items()}
        work = BlockWork(self.run, self.stream, block, dense)
        for module, W in dense.items():
            work.record(SDSStage.DENSE, module, W)
        work.first = work.prune(dense, self.hidden, "First pruning")
        inputs, hidden = work.collect_inputs(self.hidden, StatisticsLevel.GRAM)
        activity = "Control" if SDSStage.CONTROL in stages else "Statistics"
        for module in work.modules("Re-dense" if has_redense else activity):
            sparse, target = work.first[module], DenseReference(dense[module], inputs[module])
            work.record(SDSStage.FIRST, module, sparse, target)
            if SDSStage.CONTROL in stages:
                W = work.adjust(SDSStage.CONTROL, module, sparse, target, soft=False)
                work.record(SDSStage.CONTROL, module, W, target)
            if has_redense:
                with work.timed(SDSStage.REDENSE):
                    W = redense(sparse, target.dense, target.inputs, self.config.redense_steps)
                work.record(SDSStage.REDENSE, module, W, target)
        self.hidden = hidden
        work.save(self.name)


class SecondPass(PruningPass):
    """Pass with the second pruning, of the re-dense model, and the weight adjustment."""

    name, stage = SDSPass.SECOND, SDSStage.SECOND

    def solve_block(self, block: int) -> None:
        dense, adjust = self.load_weights(SDSStage.DENSE, block), self.config.adjust
        work = BlockWork(self.run, self.stream, block, dense)
        work.first = self.load_weights(SDSStage.FIRST, block)
        second = work.prune(
            self.load_weights(SDSStage.REDENSE, block), self.hidden, "Second pruning"
        )
        inputs, hidden = work.collect_inputs(self.hidden, StatisticsLevel.GRAM)
        for module in work.modules("Weight adjustment"):
            target = DenseReference(dense[module], inputs[module])
            work.record(SDSStage.SECOND, module, second[module], target)
            if adjust != "off":
                W = work.adjust(SDSStage.SDS, module, second[module], target, adjust == "soft")
                work.record(SDSStage.SDS, module, W, target)
        self.hidden = hidden
        work.save(self.name)


class MaskedWeights:
    """Trainable weights of pruned linears: W = W_start + p s, with s = 0 where W_start is 0.

    Args:
        start: module -> W_start [out, in].
        rate: learning rate, relative to the sizes s of the weights.

    Attributes:
        parameters: module -> p [out, in].
        rates: module -> learning rate.
    """

    def __init__(self, start: dict[str, Tensor], rate: float) -> None:
        self._start = start
        self._sizes = {
            module: block_reconstruction.sizes_of(W) * (W != 0) for module, W in start.items()
        }
        self.parameters = {module: torch.zeros_like(W) for module, W in start.items()}
        self.rates = dict.fromkeys(start, rate)

    def weights(self, parameters: block_reconstruction.Parameters) -> dict[str, Tensor]:
        """Compute module -> W [out, in]."""
        return {m: torch.addcmul(W, parameters[m], self._sizes[m]) for m, W in self._start.items()}


class ReconstructionPass(BlockPass):
    """Pass that reconstructs every block of a stage.

    Attributes:
        name: stage that it produces; its checkpoints have the same name.
        starts: possible starting stages; the first one that the run produces is used.
        start: stage to start from.
        hidden: inputs [1, L, d] of the current block in the compressed model, one per segment,
            held-out segments last.
        teacher: the same for the dense model.
    """

    name: SDSStage
    starts: tuple[SDSStage, ...]

    def __init__(self, run: SDSRun) -> None:
        super().__init__(run)
        self.start = next(stage for stage in self.starts if stage in run.plan.stages)

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        return UNITS_PER_EPOCH * config.reconstruct

    def open(self) -> None:
        run = self.run
        text = torch.cat([run.calibration, run.heldout]) if len(run.heldout) else run.calibration
        self.stream = open_stream(run.model, text, 1, run.dtype, run.new_batches)
        self.hidden, self.stream.hidden = self.stream.hidden, []
        self.teacher = self.hidden

    def walk(self, blocks: int) -> None:
        super().walk(blocks)
        reports = [
            self.run.store.report(self.name, block).reconstruction for block in range(blocks)
        ]
        error_ratios = [report["left"] for report in reports if report]
        improved = sum(ratio < 1 for ratio in error_ratios)
        if improved < len(error_ratios):
            self.run.reporter.log(
                f"{STAGE_LABELS[self.name]}: training lowered the held-out error of {improved} of "
                f"{len(error_ratios)} blocks. The others keep their weights."
            )

    def solve_block(self, block: int) -> None:
        run = self.run
        work = BlockWork(run, self.stream, block, self.load_weights(SDSStage.DENSE, block))
        work.first = self.load_weights(SDSStage.FIRST, block)
        work.write(work.dense)
        self.teacher = work.forward(self.teacher)
        with work.timed("blocks"):
            start = self.load_weights(self.start, block)
            masked = MaskedWeights(start, self.config.reconstruct_rate)
            units = UNITS_PER_EPOCH * len(masked.rates)
            result = block_reconstruction.reconstruct(
                run.model,
                block_reconstruction.Examples(
                    self.stream, block, self.hidden, self.teacher, len(run.calibration)
                ),
                masked,
                self.config.reconstruct,
                run.safe_point,
                lambda _: run.advance(units, at_block(block, run.blocks, "Reconstruction")),
            )
            weights = masked.weights(result.parameters)
        for module, W in weights.items():
            work.record(self.name, module, run.rounded(W))
        self._report_reconstruction(work, result)
        work.write(work.stages[self.name])
        self.hidden = work.forward(self.hidden)
        work.save(self.name)
        run.wait_for_storage()

    def replay(self, block: int) -> None:
        self.teacher = self.forward_stored(block, SDSStage.DENSE, self.teacher)
        self.hidden = self.forward_stored(block, self.name, self.hidden)

    def _report_reconstruction(
        self, work: BlockWork, result: block_reconstruction.Reconstruction
    ) -> None:
        """Report the held-out error of the block. Nothing is reported without held-out text, or if
        no layer of the block was pruned."""
        if not result.judged:
            return
        before, after = result.errors[0], result.errors[result.epoch]
        # The error before is 0 if the dense model itself has this mask.
        error_ratio = after / before if before else 1.0
        work.report.reconstruction = {"left": error_ratio, "factor": result.factor}
        key = MetricKey("reconstruction", self.name, axis="block")
        self.run.reporter.metric(key, error_ratio, work.block)
        position = at_block(work.block, self.run.blocks)
        self.run.reporter.log(f"{position}: {STAGE_LABELS[self.name]}. {result}")


class FirstReconstruction(ReconstructionPass):
    """Reconstruction of the first pruning, starting at its fixed-mask control if there is one."""

    name = SDSStage.FIRST_BLOCKS
    starts = (SDSStage.CONTROL, SDSStage.FIRST)


class SDSReconstruction(ReconstructionPass):
    """Reconstruction of the second pruning, starting at its adjusted weights if there are any."""

    name = SDSStage.SDS_BLOCKS
    starts = (SDSStage.SDS, SDSStage.SECOND)
