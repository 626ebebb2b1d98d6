"""What the walks over the blocks share: a run, and how a block is looked into."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.methods.calibration import InputCollector, InputStatistics, StatisticsLevel
from backend.methods.sds.config import SDSConfig
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.stage_store import SDSStageStore
from backend.methods.sds.timing import StepTimer
from backend.models.block_forward import BlockStream, run_block
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.hidden_states import HiddenStates, NewBatches
from backend.reporter import Reporter, stop_if_asked


@dataclass
class SDSRun:
    """One SDS run.

    Attributes:
        calibration: token ids [segments, L], without those held out.
        dtype: of the forward passes.
        patterns: full name -> pattern of every linear that is pruned.
        new: makes what hidden states are kept in between two blocks.
        total, done: units of work.
        timed: what belongs to no block's own work.
    """

    model: PreTrainedModel
    calibration: Tensor
    config: SDSConfig
    dtype: torch.dtype
    store: SDSStageStore
    reporter: Reporter
    patterns: dict[str, Pattern]
    total: int
    new: NewBatches = list
    done: int = 0
    timed: StepTimer = field(default_factory=StepTimer)

    @property
    def blocks(self) -> int:
        return len(decoder_blocks(self.model))

    def linears(self, block: int) -> dict[str, LinearWeight]:
        """Module name -> linear, of those of `block` that are pruned."""
        linears = block_linears(self.model, block)
        return {module: x for module, x in linears.items() if x.name in self.patterns}

    def advance(self, units: int, doing: str) -> None:
        """Reports `units` more as done; ends the run here if someone asked for it."""
        self.done += units
        self.reporter.progress(self.done, self.total, doing)
        self.safe_point()

    def safe_point(self) -> None:
        """Ends the run here if someone asked for it."""
        stop_if_asked(self.reporter)

    def forward(self, stream: BlockStream, block: int, hidden: HiddenStates) -> HiddenStates:
        """What `block`, as it is in the model, makes of `hidden`."""
        return run_block(self.model, stream, block, hidden, self.safe_point)

    def look(
        self,
        stream: BlockStream,
        block: int,
        modules: Collection[str],
        hidden: HiddenStates,
        need: StatisticsLevel,
        outputs: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """What some linears read while `block` runs on `hidden`, and the block's outputs.

        Args:
            outputs: whether they are wanted; if not, a pass ends at the last of the linears.
        """
        linears = {module: x for module, x in self.linears(block).items() if module in modules}
        until = () if outputs else [x.layer for x in linears.values()]
        with InputCollector(linears, need, self.calibration.shape[1]) as collector:
            made = run_block(self.model, stream, block, hidden, self.safe_point, until)
            return collector.finish(), made
