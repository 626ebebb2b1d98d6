"""The two walks over the decoder blocks, one block at work at a time.

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

from torch import Tensor

from backend.errors import MethodFailed
from backend.methods.gram import Inputs, Need, NotPositiveDefinite, Target
from backend.methods.sds.config import Stage
from backend.methods.sds.redense import SOLVERS
from backend.methods.sds.stages import FIRST_PASS, SECOND_PASS, Weights
from backend.methods.sds.work import BlockWork, Run
from backend.models.blocks import block_linears
from backend.models.stream import open_stream, run_block
from backend.reporter import REPLAY


class Walk(ABC):
    """One walk over all blocks. `hidden` holds the inputs [b, L, d] of the block at work."""

    name: str

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config

    def walk(self) -> None:
        """Solves every block that is not stored yet."""
        run = self.run
        missing = [b for b in range(run.blocks) if not run.store.holds(self.name, b)]
        if missing:
            self._open()
        for block in range(run.blocks):
            if block in missing:
                self.solve(block)
            else:
                if missing and block < missing[-1]:
                    self.replay(block)
                run.advance(2 * len(block_linears(run.model, block)), REPLAY)

    def _open(self) -> None:
        self.stream = open_stream(
            self.run.model, self.run.calibration, self.config.batch, self.run.dtype
        )
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def stored(self, stage: Stage, block: int) -> Weights:
        return self.run.store.weights(stage, block, str(self.run.model.device))

    def through(self, block: int, stage: Stage, hidden: list[Tensor]) -> list[Tensor]:
        """What `block` at `stage` makes of `hidden`."""
        weights = self.stored(stage, block)
        for module, linear in block_linears(self.run.model, block).items():
            linear.write(weights[module])
        return run_block(self.run.model, self.stream, block, hidden)

    @abstractmethod
    def solve(self, block: int) -> None:
        """Makes and stores the stages of a block, and moves the hidden states past it."""

    @abstractmethod
    def replay(self, block: int) -> None:
        """Moves the hidden states past a block that is stored."""


class FirstPass(Walk):
    """First pruning, its control, and the re-dense step."""

    name = FIRST_PASS

    def _open(self) -> None:
        super()._open()
        self.teacher = self.hidden  # what the re-dense step reads, unless "sd"

    def solve(self, block: int) -> None:
        linears = block_linears(self.run.model, block)
        dense = {module: linear.read() for module, linear in linears.items()}
        work = BlockWork(self.run, self.stream, block, dense)
        for module, W in dense.items():
            work.record(Stage.DENSE, module, W)
        work.first = work.prune_all(self.config.base, dense, self.hidden, "First pruning")
        work.write(work.first)
        seen, hidden = work.look(self.hidden, self._needs(self.config.inputs == "sd"))
        taught = self._teach(work, seen)
        for module in work.modules("Re-dense"):
            target = Target(dense[module], seen[module])
            work.record(Stage.FIRST, module, work.first[module], target)
            self._control(work, module, target)
            self._redense(work, module, Target(dense[module], taught[module]))
        self.hidden = hidden
        if self.config.inputs == "kd":
            work.write(work.stages[Stage.REDENSE])
            self.teacher = work.forward(self.teacher)
        work.save(self.name)

    def replay(self, block: int) -> None:
        self.hidden = self.through(block, Stage.FIRST, self.hidden)
        if self.config.inputs != "sd":
            stage = Stage.DENSE if self.config.inputs == "dd" else Stage.REDENSE
            self.teacher = self.through(block, stage, self.teacher)

    def _needs(self, teaches: bool) -> Need:
        """What to gather in a look that the re-dense step reads, or that only the control reads."""
        return SOLVERS[self.config.redense].needs if teaches else Need.GRAM

    def _teach(self, work: BlockWork, seen: dict[str, Inputs]) -> dict[str, Inputs]:
        """The inputs the re-dense step reads, given what the sparse block has seen."""
        if self.config.inputs == "sd":
            return seen
        if self.config.inputs == "dd":
            work.write(work.dense)
        taught, outputs = work.look(self.teacher, self._needs(True))
        if self.config.inputs == "dd":
            self.teacher = outputs
        return taught

    def _control(self, work: BlockWork, module: str, target: Target) -> None:
        if self.config.control:
            W = work.adjust(Stage.CONTROL, work.first[module], target, soft=False)
            work.record(Stage.CONTROL, module, W, target)

    def _redense(self, work: BlockWork, module: str, target: Target) -> None:
        with work.timed(Stage.REDENSE):
            solve = SOLVERS[self.config.redense].solve
            try:
                W = solve(work.first[module], target.dense, target.inputs, self.config)
            except NotPositiveDefinite as error:
                raise MethodFailed(
                    f"{work.linears[module].name} could not be made dense again.",
                    "Its inputs are too alike for so weak a pull.",
                    "Raise the ridge pull, or choose the gram solver.",
                    field="ridge",
                ) from error
        work.record(Stage.REDENSE, module, W, target)


class SecondPass(Walk):
    """Second pruning of the re-dense model, and the weight adjustment."""

    name = SECOND_PASS

    def solve(self, block: int) -> None:
        config = self.config
        dense = self.stored(Stage.DENSE, block)
        work = BlockWork(self.run, self.stream, block, dense)
        work.first = self.stored(Stage.FIRST, block)
        redense = self.stored(Stage.REDENSE, block)
        pruner = config.base if config.second == "base" else config.second
        work.write(redense)
        second = work.prune_all(pruner, redense, self.hidden, "Second pruning")
        work.write(second)
        seen, hidden = work.look(self.hidden, Need.GRAM)
        for module in work.modules("Weight adjustment"):
            target = Target(dense[module], seen[module])
            work.record(Stage.SECOND, module, second[module], target)
            if config.adjust != "off":
                soft = config.adjust == "soft"
                W = work.adjust(Stage.SDS, second[module], target, soft)
                work.record(Stage.SDS, module, W, target)
        self.hidden = hidden
        work.save(self.name)

    def replay(self, block: int) -> None:
        self.hidden = self.through(block, Stage.SECOND, self.hidden)
