"""What all passes of SDS over the decoder blocks share."""

from abc import abstractmethod

from backend.calibration.block_walk import BlockWalk
from backend.models.block_forward import open_stream
from backend.models.block_offload import resident
from backend.models.hidden_states import HiddenStates
from backend.pruning.block_work import SDSRun
from backend.pruning.config import SDSConfig, SDSStage
from backend.pruning.stage_store import Weights
from backend.reporter import REPLAY


class BlockPass(BlockWalk):
    """One pass over all blocks. `hidden` holds the inputs [b, L, d] of the current block."""

    name: str  # of its checkpoints

    @classmethod
    def units(cls, config: SDSConfig) -> int:
        """Units of work, per linear."""
        return 2

    def __init__(self, run: SDSRun) -> None:
        self.run, self.config = run, run.config

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(self.name, block)

    def open(self) -> None:
        run = self.run
        self.stream = open_stream(run.model, run.calibration, self.config.batch, run.dtype, run.new)
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def solve(self, block: int) -> None:
        with resident(self.run.model, block):
            self.solve_block(block)

    @abstractmethod
    def solve_block(self, block: int) -> None:
        """Compute and store the stages of `block`, and move the hidden states past it."""

    def report(self, block: int, solved: bool) -> None:
        if not solved:
            self.run.advance(self.units(self.config) * len(self.run.linears(block)), REPLAY)

    def stored(self, stage: SDSStage, block: int) -> Weights:
        """The stored weights of `block` at `stage`."""
        return self.run.store.weights(stage, block, str(self.run.model.device))

    def forward_stored(self, block: int, stage: SDSStage, hidden: HiddenStates) -> HiddenStates:
        """The outputs of `block` at `stage` for the inputs `hidden`."""
        with resident(self.run.model, block):
            linears = self.run.linears(block)
            for module, W in self.stored(stage, block).items():
                linears[module].write(W)
            return self.run.forward(self.stream, block, hidden)
