"""The walks over the decoder blocks, one block at work at a time.

Survey, only for OWL, on the hidden states of the dense model: see allocation.

First pass, on the hidden states of the sparse model so far:

    H  = grams of the dense block      W_sparse  = prune(W_dense, H)
    H' = grams of the sparse block     W_redense = redense(W_sparse, W_dense, H')
    hidden <- sparse block(hidden)     W_control = adjust(W_sparse, W_dense, H'), mask fixed

Second pass, on the hidden states of the second sparse model so far:

    H  = grams of the re-dense block   W_second  = prune(W_redense, H)
    H' = grams of the second block     W_sds     = adjust(W_second, W_dense, H')
    hidden <- second block(hidden)     not the adjusted block

The re-dense step may read other inputs: those of the dense model ("dd"), or those of the blocks
already re-densified ("kd"). Such hidden states then run beside the sparse ones.

A finished block is a checkpoint. A resumed walk runs finished blocks forward with their stored
weights, which gives the same hidden states bit for bit, and solves only what is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from backend.errors import ComputeError
from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.linalg import NotPositiveDefiniteError
from backend.methods.sds.block_work import BlockWork
from backend.methods.sds.config import SDSStage
from backend.methods.sds.owl import allocated
from backend.methods.sds.redense import SOLVERS
from backend.methods.sds.run import SDSRun
from backend.methods.sds.stage_store import FIRST_PASS, SECOND_PASS, SURVEY, BlockReport, Weights
from backend.methods.sds.timing import StepTimer
from backend.models.block_forward import open_stream
from backend.models.block_offload import resident
from backend.models.hidden_states import HiddenStates
from backend.reporter import REPLAY


class BlockPass(ABC):
    """One walk over all blocks. `hidden` holds the inputs [b, L, d] of the block at work.

    Attributes:
        units: of work, for each linear.
    """

    name: str
    units = 2

    def __init__(self, run: SDSRun) -> None:
        self.run, self.config = run, run.config

    def walk(self) -> None:
        """Solves every block that is not stored yet."""
        run = self.run
        missing = [b for b in range(run.blocks) if not run.store.holds(self.name, b)]
        if missing:
            self._open()
        for block in range(run.blocks):
            if block in missing:
                with resident(run.model, block):
                    self.solve(block)
            else:
                if missing and block < missing[-1]:
                    self.replay(block)
                run.advance(self.units * len(run.linears(block)), REPLAY)

    def _open(self) -> None:
        run = self.run
        self.stream = open_stream(run.model, run.calibration, self.config.batch, run.dtype, run.new)
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def stored(self, stage: SDSStage, block: int) -> Weights:
        return self.run.store.weights(stage, block, str(self.run.model.device))

    def through(self, block: int, stage: SDSStage, hidden: HiddenStates) -> HiddenStates:
        """What `block` at `stage` makes of `hidden`."""
        with resident(self.run.model, block):
            linears = self.run.linears(block)
            for module, W in self.stored(stage, block).items():
                linears[module].write(W)
            return self.run.forward(self.stream, block, hidden)

    @abstractmethod
    def solve(self, block: int) -> None:
        """Makes and stores the stages of a block, and moves the hidden states past it."""

    @abstractmethod
    def replay(self, block: int) -> None:
        """Moves the hidden states past a block that is stored."""


class OutlierPass(BlockPass):
    """Counts the outliers of every block of the dense model."""

    name, units = SURVEY, 1

    def solve(self, block: int) -> None:
        run, linears = self.run, self.run.linears(block)
        timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        with timed("outliers"):
            some = [x.module for x in allocated(linears.values(), self.config)]
            seen, self.hidden = run.look(
                self.stream, block, some, self.hidden, StatisticsLevel.ENERGY
            )
            scores = [linears[m].read().abs_().mul_(seen[m].energy.sqrt()) for m in some]
            facts = BlockReport(outliers=outlier_share(scores, self.config.owl_outlier))
        facts.seconds = dict(timed.seconds)
        run.store.save(self.name, block, {}, facts)
        run.advance(len(linears), f"Outliers, block {block + 1} of {run.blocks}")

    def replay(self, block: int) -> None:
        self.hidden = self.run.forward(self.stream, block, self.hidden)


def outlier_share(scores: Sequence[Tensor], times: float) -> float:
    """Share of all entries that are more than `times` their mean; 0 of none."""
    count = sum(score.numel() for score in scores)
    mean = sum(score.sum().item() for score in scores) / max(count, 1)
    return sum((score > times * mean).sum().item() for score in scores) / max(count, 1)


class FirstPass(BlockPass):
    """First pruning, its control, and the re-dense step."""

    name = FIRST_PASS

    def _open(self) -> None:
        super()._open()
        self.whole = self.config.until == "sds"
        self.inputs = self.config.inputs if self.whole else "sd"
        self.teacher = self.hidden  # what the re-dense step reads, unless "sd"

    def solve(self, block: int) -> None:
        dense = {module: x.read() for module, x in self.run.linears(block).items()}
        work = BlockWork(self.run, self.stream, block, dense)
        for module, W in dense.items():
            work.record(SDSStage.DENSE, module, W)
        work.first = work.prune_all(self.config.base, dense, self.hidden, "First pruning")
        seen, hidden = work.look(self.hidden, self._needs(self.whole and self.inputs == "sd"))
        taught = self._teach(work, seen) if self.whole else {}
        for module in work.modules("Re-dense" if self.whole else "Control"):
            target = DenseReference(dense[module], seen[module])
            work.record(SDSStage.FIRST, module, work.first[module], target)
            self._control(work, module, target)
            if self.whole:
                self._redense(work, module, DenseReference(dense[module], taught[module]))
        self.hidden = hidden
        if self.inputs == "kd":
            work.write(work.stages[SDSStage.REDENSE])
            self.teacher = work.forward(self.teacher)
        work.save(self.name)

    def replay(self, block: int) -> None:
        self.hidden = self.through(block, SDSStage.FIRST, self.hidden)
        if self.inputs != "sd":
            stage = SDSStage.DENSE if self.inputs == "dd" else SDSStage.REDENSE
            self.teacher = self.through(block, stage, self.teacher)

    def _needs(self, teaches: bool) -> StatisticsLevel:
        """What to gather in a look that the re-dense step reads, or that only the control reads."""
        return SOLVERS[self.config.redense].needs if teaches else StatisticsLevel.GRAM

    def _teach(
        self, work: BlockWork, seen: dict[str, InputStatistics]
    ) -> dict[str, InputStatistics]:
        """The inputs the re-dense step reads, given what the sparse block has seen."""
        if self.inputs == "sd":
            return seen
        dd = self.inputs == "dd"
        if dd:
            work.write(work.dense)
        taught, outputs = work.look(self.teacher, self._needs(True), outputs=dd)
        self.teacher = outputs if dd else self.teacher
        return taught

    def _control(self, work: BlockWork, module: str, target: DenseReference) -> None:
        if self.config.control:
            W = work.adjust(SDSStage.CONTROL, module, work.first[module], target, soft=False)
            work.record(SDSStage.CONTROL, module, W, target)

    def _redense(self, work: BlockWork, module: str, target: DenseReference) -> None:
        with work.timed(SDSStage.REDENSE):
            solve = SOLVERS[self.config.redense].solve
            try:
                W = solve(work.first[module], target.dense, target.inputs, self.config)
            except NotPositiveDefiniteError as error:
                raise ComputeError(
                    f"{work.linears[module].name} could not be made dense again.",
                    "Its inputs are too alike for so weak a pull.",
                    "Raise the ridge pull, or choose the gram solver.",
                    field="ridge",
                ) from error
        work.record(SDSStage.REDENSE, module, W, target)


class SecondPass(BlockPass):
    """Second pruning of the re-dense model, and the weight adjustment."""

    name = SECOND_PASS

    def solve(self, block: int) -> None:
        config = self.config
        dense = self.stored(SDSStage.DENSE, block)
        work = BlockWork(self.run, self.stream, block, dense)
        work.first = self.stored(SDSStage.FIRST, block)
        redense = self.stored(SDSStage.REDENSE, block)
        pruner = config.base if config.second == "base" else config.second
        second = work.prune_all(pruner, redense, self.hidden, "Second pruning")
        seen, hidden = work.look(self.hidden, StatisticsLevel.GRAM)
        for module in work.modules("Weight adjustment"):
            target = DenseReference(dense[module], seen[module])
            work.record(SDSStage.SECOND, module, second[module], target)
            if config.adjust != "off":
                soft = config.adjust == "soft"
                W = work.adjust(SDSStage.SDS, module, second[module], target, soft)
                work.record(SDSStage.SDS, module, W, target)
        self.hidden = hidden
        work.save(self.name)

    def replay(self, block: int) -> None:
        self.hidden = self.through(block, SDSStage.SECOND, self.hidden)
