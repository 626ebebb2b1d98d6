"""The two passes that prune.

First pass, on the hidden states of the sparse model so far:

    H  = grams of the dense block      W_sparse  = prune(W_dense, H)
    H' = grams of the sparse block     W_redense = redense(W_sparse, W_dense, H')
    hidden <- sparse block(hidden)     W_control = adjust(W_sparse, W_dense, H'), mask fixed or soft

Second pass, on the hidden states of the second sparse model so far:

    H  = grams of the re-dense block   W_second  = prune(W_redense, H)
    H' = grams of the second block     W_sds     = adjust(W_second, W_dense, H')
    hidden <- second block(hidden)     not the adjusted block

Damping may be chosen on held-out segments, which then pass through the same blocks: see tuning.

The re-dense step may use other inputs: those of the dense model ("dd"), or those of the blocks
already re-densified ("kd"). Their hidden states are then propagated alongside the sparse ones.
"""

from __future__ import annotations

from functools import partial

from backend.errors import ComputeError
from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.linalg import NotPositiveDefiniteError
from backend.methods.sds.block_work import BlockWork
from backend.methods.sds.config import SDSStage
from backend.methods.sds.passes.block_pass import BlockPass
from backend.methods.sds.redense import SOLVERS
from backend.methods.sds.stage_store import FIRST_PASS, SECOND_PASS, Weights
from backend.methods.sds.tuning import Tuner


class PruningPass(BlockPass):
    """A pass that prunes, and whose hidden states are those of the pruned blocks.

    Attributes:
        stage: the pruned weights.
        pruner: its name.
        tuner: None where nothing is tuned.
    """

    stage: SDSStage
    pruner: str
    tuner: Tuner | None = None

    def prune(self, work: BlockWork, weights: Weights, doing: str) -> Weights:
        """`weights` pruned, with the damping of the config or a tuned one."""
        tuner, pruner = self.tuner, self.pruner
        damping_for = partial(tuner.damping, work, pruner, weights) if tuner else None
        return work.prune_all(pruner, weights, self.hidden, doing, damping_for)

    def replay(self, block: int) -> None:
        self.hidden = self.forward_stored(block, self.stage, self.hidden)
        if tuner := self.tuner:
            tuner.hidden = self.forward_stored(block, self.stage, tuner.hidden, tuner.stream)


class FirstPass(PruningPass):
    """First pruning, its control, and the re-dense step."""

    name, stage = FIRST_PASS, SDSStage.FIRST

    def open(self) -> None:
        super().open()
        self.pruner = self.config.base
        self.tuner = Tuner(self.run, self.stage) if self.config.tune else None
        self.whole = self.config.until == "sds"
        self.inputs = self.config.inputs if self.whole else "sd"
        self.teacher = self.hidden  # inputs of the re-dense step, unless "sd"

    def solve_block(self, block: int) -> None:
        dense = {module: x.read() for module, x in self.run.linears(block).items()}
        work = BlockWork(self.run, self.stream, block, dense)
        for module, W in dense.items():
            work.record(SDSStage.DENSE, module, W)
        work.first = self.prune(work, dense, "First pruning")
        level = self._level(self.whole and self.inputs == "sd")
        inputs, hidden = work.collect_inputs(self.hidden, level)
        if self.tuner:
            self.tuner.advance(work)
        redense_inputs = self._redense_inputs(work, inputs) if self.whole else {}
        for module in work.modules("Re-dense" if self.whole else "Control"):
            target = DenseReference(dense[module], inputs[module])
            work.record(SDSStage.FIRST, module, work.first[module], target)
            self._controls(work, module, target)
            if self.whole:
                target = DenseReference(dense[module], redense_inputs[module])
                self._redense(work, module, target)
        self.hidden = hidden
        if self.inputs == "kd":
            work.write(work.stages[SDSStage.REDENSE])
            self.teacher = work.forward(self.teacher)
        work.save(self.name)

    def replay(self, block: int) -> None:
        super().replay(block)
        if self.inputs != "sd":
            stage = SDSStage.DENSE if self.inputs == "dd" else SDSStage.REDENSE
            self.teacher = self.forward_stored(block, stage, self.teacher)

    def _level(self, redense: bool) -> StatisticsLevel:
        """The statistics to collect for the re-dense step, or for the control alone."""
        return SOLVERS[self.config.redense].needs if redense else StatisticsLevel.GRAM

    def _redense_inputs(
        self, work: BlockWork, sparse: dict[str, InputStatistics]
    ) -> dict[str, InputStatistics]:
        """The input statistics of the re-dense step, given those of the sparse block."""
        if self.inputs == "sd":
            return sparse
        dd = self.inputs == "dd"
        if dd:
            work.write(work.dense)
        inputs, outputs = work.collect_inputs(self.teacher, self._level(True), outputs=dd)
        self.teacher = outputs if dd else self.teacher
        return inputs

    def _controls(self, work: BlockWork, module: str, target: DenseReference) -> None:
        for stage in (SDSStage.CONTROL, SDSStage.SOFT_CONTROL):
            if stage in self.config.stages:
                soft = stage == SDSStage.SOFT_CONTROL
                W = work.adjust(stage, module, work.first[module], target, soft)
                work.record(stage, module, W, target)

    def _redense(self, work: BlockWork, module: str, target: DenseReference) -> None:
        with work.timed(SDSStage.REDENSE):
            solve = SOLVERS[self.config.redense].solve
            try:
                W = solve(work.first[module], target.dense, target.inputs, self.config)
            except NotPositiveDefiniteError as error:
                raise ComputeError(
                    f"{work.linears[module].name} could not be re-densified.",
                    "H + a I is not positive definite: its inputs are nearly collinear.",
                    "Raise the ridge strength, or choose the gram solver.",
                    field="ridge",
                ) from error
        work.record(SDSStage.REDENSE, module, W, target)


class SecondPass(PruningPass):
    """Second pruning of the re-dense model, and the weight adjustment."""

    name, stage = SECOND_PASS, SDSStage.SECOND

    def open(self) -> None:
        super().open()
        self.pruner = self.config.second_pruner
        self.tuner = Tuner(self.run, self.stage) if self.config.dampings(self.pruner) else None

    def solve_block(self, block: int) -> None:
        config = self.config
        dense = self.stored(SDSStage.DENSE, block)
        work = BlockWork(self.run, self.stream, block, dense)
        work.first = self.stored(SDSStage.FIRST, block)
        redense = self.stored(SDSStage.REDENSE, block)
        second = self.prune(work, redense, "Second pruning")
        inputs, hidden = work.collect_inputs(self.hidden, StatisticsLevel.GRAM)
        if self.tuner:
            self.tuner.advance(work)
        for module in work.modules("Weight adjustment"):
            target = DenseReference(dense[module], inputs[module])
            work.record(SDSStage.SECOND, module, second[module], target)
            if config.adjust != "off":
                soft = config.adjust == "soft"
                W = work.adjust(SDSStage.SDS, module, second[module], target, soft)
                work.record(SDSStage.SDS, module, W, target)
        self.hidden = hidden
        work.save(self.name)
