"""An SDS run, and one decoder block being pruned, re-densified and adjusted.

All progress, snapshots, errors and warnings of a run are reported here."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import (
    DenseReference,
    InputStatistics,
    StatisticsLevel,
    collect_inputs,
)
from backend.errors import ComputeError
from backend.linalg.gram import search_damping
from backend.metric_key import MetricKey
from backend.models.block_forward import BlockStream, HiddenStates, NewBatches, run_block
from backend.models.blocks import LinearWeight, all_finite, block_linears, decoder_blocks
from backend.models.memory import SMALL_BLOCK, is_out_of_memory
from backend.models.threads import AtOnce
from backend.pruning.config import PASS_OF, RECONSTRUCTED, STEP_LABELS, SDSConfig, SDSStage
from backend.pruning.masks import overlap
from backend.pruning.plan import PruningPlan
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.stage_store import BlockReport, SDSStageStore, Weights
from backend.pruning.weight_adjustment import adjust
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.statistics.tensors import RELATIVE_ERROR

OUT_OF_MEMORY = {  # step -> what to do when it runs out of memory, and the config field
    "inputs": ("Lower the calibration batch size or the context length.", "batch"),
    "blocks": ("Lower the context length, or leave out the block reconstruction.", "reconstruct"),
    "heldout": ("Lower the context length.", "context"),
    "": ("Stream the weights; if they are, exclude the largest layers.", "weights"),  # any other
}


class StepTimer:
    """Measures the seconds of each step; turns an out-of-memory error into one that names it.

    Args:
        where: completes "Out of memory: pruning", such as " of block 3 of 30".
    """

    def __init__(self, where: str = "") -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.where = where

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                do, field = OUT_OF_MEMORY.get(step, OUT_OF_MEMORY[""])
                raise ComputeError(
                    f"Out of memory: {STEP_LABELS.get(step, step)}{self.where}.",
                    str(error).split("\n")[0][:300],
                    do,
                    field=field,
                ) from error
            raise
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # otherwise the next step is charged for it
        self.seconds[step] += time.perf_counter() - start


FAILURE = ("pruned", "Use more calibration text, or choose Wanda.")


@dataclass
class SDSRun:
    """What all passes of one SDS run share.

    Attributes:
        calibration: token ids [segments, L].
        dtype: of the forward passes; `stored`: of the saved weights, to which every sparse weight
            is rounded as soon as it is computed, so that all figures are those of what is saved.
        patterns: full name -> pattern of every linear that is pruned; OWL replaces some of them.
        new: creates the container of the hidden states between two blocks (memory or disk).
        total, done: units of work.
        heldout: token ids [windows, L], to choose by.
        statistics, storage: carry out statistics; store a block as soon as it is measured.
        timed: time that belongs to no single block.
    """

    model: PreTrainedModel
    calibration: Tensor
    config: SDSConfig
    plan: PruningPlan
    dtype: torch.dtype
    store: SDSStageStore
    reporter: Reporter
    total: int
    new: NewBatches = list
    stored: torch.dtype = torch.float32
    heldout: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    statistics: Executor = field(default_factory=AtOnce)
    storage: Executor = field(default_factory=AtOnce)
    done: int = 0
    timed: StepTimer = field(default_factory=StepTimer)
    storing: Future[None] | None = None  # of the block that was finished last

    def __post_init__(self) -> None:
        self.patterns = {name: group.pattern for name, group in self.plan.layers.items()}

    @property
    def blocks(self) -> int:
        return len(decoder_blocks(self.model))

    def linears(self, block: int) -> dict[str, LinearWeight]:
        """Module name -> linear of the layers of `block` that are pruned."""
        linears = block_linears(self.model, block)
        return {module: x for module, x in linears.items() if x.name in self.patterns}

    def rounded(self, W: Tensor) -> Tensor:
        """`W` at values that the stored dtype represents; zeros stay zeros."""
        return W if self.stored == W.dtype else W.to(self.stored).to(W.dtype)

    def advance(self, units: int, doing: str) -> None:
        """Report `units` more as done; stop here if cancellation was requested."""
        self.done += units
        self.reporter.progress(self.done, self.total, doing)
        self.safe_point()

    def safe_point(self) -> None:
        """Stop here if cancellation was requested."""
        stop_if_asked(self.reporter)

    def settle(self) -> None:
        """Wait until every finished block is stored."""
        if (storing := self.storing) is not None:
            self.storing = None
            with self.timed("checkpoints"):
                storing.result()

    def forward(self, stream: BlockStream, block: int, hidden: HiddenStates) -> HiddenStates:
        """The outputs of `block`, with its current weights, for the inputs `hidden`."""
        return run_block(self.model, stream, block, hidden, self.safe_point)

    def collect_inputs(
        self,
        stream: BlockStream,
        block: int,
        modules: Collection[str],
        hidden: HiddenStates,
        level: StatisticsLevel,
        outputs: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run `block` on `hidden`; input statistics of some linears, and the block's outputs.
        `outputs`: whether to compute them; if not, the pass ends at the last of the linears."""
        linears = {module: x for module, x in self.linears(block).items() if module in modules}
        return collect_inputs(
            self.model, stream, block, hidden, linears, level, self.safe_point, outputs
        )


class BlockWork:
    """One decoder block during one pass.

    Attributes:
        linears: module name -> linear of the layers that are pruned.
        dense, first: the block's original weights, and those after the first pruning.
        stages: stage -> weights this pass has computed.
    """

    def __init__(self, run: SDSRun, stream: BlockStream, block: int, dense: Weights) -> None:
        self.run, self.stream, self.block, self.dense = run, stream, block, dense
        self.linears = run.linears(block)
        self.first: Weights = {}
        self.stages: dict[SDSStage, Weights] = defaultdict(dict)
        self.report = BlockReport(weights=sum(W.numel() for W in dense.values()))
        self.timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        self._references: dict[str, ReferenceTensor] = {}
        self._measured: list[Future[TensorMeasurement]] = []

    def write(self, weights: Weights) -> None:
        """Write `weights` of all or some linears into the model."""
        for module, W in weights.items():
            self.linears[module].write(W)

    def modules(self, doing: str) -> Iterator[str]:
        """Iterate over the block's module names; report progress and check for cancellation."""
        for module in self.linears:
            yield module
            self.run.advance(1, at_block(self.block, self.run.blocks, doing))

    def forward(self, hidden: HiddenStates) -> HiddenStates:
        """The block's outputs, with its current weights, for the inputs `hidden`."""
        with self.timed("inputs"):
            return self.run.forward(self.stream, self.block, hidden)

    def collect_inputs(
        self, hidden: HiddenStates, level: StatisticsLevel, outputs: bool = True
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run the block on `hidden`; input statistics of its linears, and its outputs.

        Nothing is run where neither is needed."""
        if not outputs and (level == StatisticsLevel.NOTHING or not self.linears):
            return dict.fromkeys(self.linears, InputStatistics()), []
        with self.timed("inputs"):
            return self.run.collect_inputs(
                self.stream, self.block, self.linears, hidden, level, outputs
            )

    def prune(self, weights: Weights, hidden: HiddenStates, doing: str) -> Weights:
        """Prune `weights` on the inputs `hidden` and return them; both are written to the model."""
        self.write(weights)
        planned = (self.run.plan.layers[x.name] for x in self.linears.values())
        needs = (PRUNERS[group.pruner].needs for group in planned)
        level = max(needs, default=StatisticsLevel.NOTHING)
        inputs, _ = self.collect_inputs(hidden, level, outputs=False)
        if self.report.weights > SMALL_BLOCK:
            self.run.settle()  # so that the stages of two blocks are not in memory at once
        pruned = Weights()
        for module in self.modules(doing):
            with self.timed("pruning"):
                pruned[module] = self._prune_linear(module, weights[module], inputs[module])
        self.write(pruned)
        return pruned

    def _prune_linear(self, module: str, W: Tensor, inputs: InputStatistics) -> Tensor:
        """Prune `W`, raising the damping if the Hessian is not positive definite. Raises
        ComputeError: no damping helped."""
        name = self.linears[module].name
        planned, pattern = self.run.plan.layers[name], self.run.patterns[name]
        pruner = PRUNERS[planned.pruner]
        if not inputs.tokens and pruner.needs:
            self.warn(f"No calibration token reaches {name}: it is pruned by its weights alone.")

        def solve(damping: float) -> Tensor:
            return self.run.rounded(pruner.prune(W, inputs, pattern, damping))

        return search_damping(solve, planned.damping, self.warn, name, FAILURE)

    def adjust(
        self, stage: SDSStage, module: str, start: Tensor, target: DenseReference, soft: bool
    ) -> Tensor:
        """Adjust the sparse weights `start` of `module` toward the outputs of `target`."""
        name = self.linears[module].name
        with self.timed(stage):
            steps, pattern = self.run.config.adjust_steps, self.run.patterns[name]
            W = adjust(start, target.dense, target.inputs, pattern, steps, soft)
        return self.run.rounded(W)

    def record(
        self, stage: SDSStage, module: str, W: Tensor, target: DenseReference | None = None
    ) -> None:
        """Store `W` [out, in] as `module` at `stage` and have it measured. Raises ComputeError: the
        solver diverged."""
        if not all_finite(W):
            raise _diverged(self.linears[module].name, stage)
        self.stages[stage][module] = W
        with self.timed("statistics"):
            waits = self.run.statistics.submit(self._measure, stage, module, W, target)
        self._measured.append(waits)

    def _measure(
        self, stage: SDSStage, module: str, W: Tensor, target: DenseReference | None
    ) -> TensorMeasurement:
        more: dict[str, float] = {}
        if target is not None:
            more[RELATIVE_ERROR] = target.relative_error(W)
        if stage not in (SDSStage.DENSE, SDSStage.REDENSE):
            more["mask_overlap"] = overlap(W != 0, self.first[module] != 0)
        if module not in self._references:
            self._references[module] = ReferenceTensor(self.dense[module])
        return self._references[module].measure(
            W,
            tensor=f"{self.linears[module].name}.weight",
            block=self.block,
            module=module,
            stage=stage,
            more=more,
            # not off the way from the dense model to the saved one
            spectral=stage not in (SDSStage.CONTROL, SDSStage.SECOND, SDSStage.FIRST_BLOCKS),
            energy=target.inputs.energy if target and stage == SDSStage.FIRST else None,
        )

    def warn(self, text: str) -> None:
        """Log `text` and add it to the warnings of the result."""
        self.report.warnings.append(text)
        self.run.reporter.log(text)

    def save(self, pass_name: str) -> None:
        """Have stored what this pass computed, as soon as it is measured: `SDSRun.settle` waits for
        it."""
        # by name: a block without pruned layers has its stages too
        stages = {x: self.stages[x] for x in self.run.plan.stages if PASS_OF[x] == pass_name}
        self.run.settle()
        self.run.storing = self.run.storage.submit(self._store, pass_name, stages)

    def _store(self, pass_name: str, stages: dict[SDSStage, Weights]) -> None:
        """Report the block's statistics and mean errors, then store its stages: in this order,
        because a stored block is not reported again."""
        beside = StepTimer(self.timed.where)  # the work of the run does not wait
        for waits in self._measured:
            with beside("statistics"):
                measured = waits.result()
            found, stage = measured.snapshot, SDSStage(measured.snapshot.stage)
            self.report.zeros[stage] = self.report.zeros.get(stage, 0) + found.zeros
            if RELATIVE_ERROR in found.stats:
                by_module = self.report.errors.setdefault(stage, {})
                by_module[found.module] = found.stats[RELATIVE_ERROR]
            measured.report(self.run.reporter)
        for name, errors in self.report.errors.items():
            key = MetricKey("error", name, axis="block")
            self.run.reporter.metric(key, fmean(errors.values()), self.block)
        self.report.seconds = dict(self.timed.seconds)
        self.run.store.save(pass_name, self.block, stages, self.report)


def _diverged(name: str, stage: SDSStage) -> ComputeError:
    why, field = "The solver diverged.", "damping"
    do = "Use more calibration text, or raise the damping."
    if stage in RECONSTRUCTED:
        why, field = "The block reconstruction diverged.", "reconstruct_rate"
        do = "Lower its learning rate, or choose float32 as the forward precision."
    return ComputeError(f"{name} is not finite at stage {stage}.", why, do, field=field)
