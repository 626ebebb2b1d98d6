"""State of an SDS run, and the work on one of its decoder blocks.

Progress, snapshots, errors and warnings of a run are reported here."""

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
from backend.models.devices import wait_for_accelerator
from backend.models.memory import SMALL_BLOCK_WEIGHTS, is_out_of_memory
from backend.models.threads import InlineExecutor
from backend.pruning.config import PASS_OF, RECONSTRUCTED, STEP_LABELS, SDSConfig, SDSStage
from backend.pruning.masks import overlap
from backend.pruning.plan import PruningPlan
from backend.pruning.pruners.registry import PRUNERS
from backend.pruning.stage_store import BlockReport, SDSStageStore, Weights
from backend.pruning.weight_adjustment import adjust
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.statistics.tensors import RELATIVE_ERROR

# Step -> advice when it runs out of memory, and the config field to change; "" is any other step.
OUT_OF_MEMORY = {
    "inputs": ("Lower the calibration batch size or the context length.", "batch"),
    "blocks": ("Lower the context length, or leave out the block reconstruction.", "reconstruct"),
    "heldout": ("Lower the context length.", "context"),
    "": (
        "Stream the weights. If they are streamed already, exclude the largest layers.",
        "weights",
    ),
}


class StepTimer:
    """Timer of the steps of a run. It also adds the step to out-of-memory errors.

    Args:
        where: completes "Out of memory: pruning", for example " of block 3 of 30".

    Attributes:
        seconds: step -> total duration.
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
                advice, field = OUT_OF_MEMORY.get(step, OUT_OF_MEMORY[""])
                raise ComputeError(
                    f"Out of memory: {STEP_LABELS.get(step, step)}{self.where}.",
                    str(error).split("\n")[0][:300],
                    advice,
                    field=field,
                ) from error
            raise
        # Accelerators are asynchronous: the next step would be charged for this step's work.
        wait_for_accelerator()
        self.seconds[step] += time.perf_counter() - start


# Participle and advice in the error of a layer whose Hessian no damping makes positive definite.
FAILURE = ("pruned", "Use more calibration text, or choose Wanda.")


@dataclass
class SDSRun:
    """State that all passes of one SDS run share.

    Attributes:
        model: model to prune in place.
        calibration: token ids [segments, L].
        config: options of the run.
        plan: plan of the run.
        dtype: dtype of the forward passes.
        store: checkpoints of the run.
        reporter: receiver of progress, metrics and log lines.
        total_units: units of work of the run.
        new_batches: factory for the container of hidden states between blocks, in memory or on
            disk.
        stored_dtype: dtype of the saved weights. Sparse weights are rounded to it as soon as they
            are computed, so that all figures describe the saved weights.
        heldout: token ids [windows, L] that select the kept stage.
        statistics: executor of the weight statistics.
        storage: executor that stores each block once it is measured.
        done_units: units of work done.
        timed: timer of work that belongs to no single block.
        pending_storage: storage of the block that was finished last.
        patterns: full name -> pattern of every linear to prune. OWL replaces some of them.
    """

    model: PreTrainedModel
    calibration: Tensor
    config: SDSConfig
    plan: PruningPlan
    dtype: torch.dtype
    store: SDSStageStore
    reporter: Reporter
    total_units: int
    new_batches: NewBatches = list
    stored_dtype: torch.dtype = torch.float32
    heldout: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    statistics: Executor = field(default_factory=InlineExecutor)
    storage: Executor = field(default_factory=InlineExecutor)
    done_units: int = 0
    timed: StepTimer = field(default_factory=StepTimer)
    pending_storage: Future[None] | None = None

    def __post_init__(self) -> None:
        self.patterns = {name: group.pattern for name, group in self.plan.layers.items()}

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(decoder_blocks(self.model))

    def linears(self, block: int) -> dict[str, LinearWeight]:
        """Module name -> linear, for every linear of `block` to prune."""
        linears = block_linears(self.model, block)
        return {module: x for module, x in linears.items() if x.name in self.patterns}

    def rounded(self, W: Tensor) -> Tensor:
        """Round `W` to values that the stored dtype represents; zeros stay zeros."""
        return W if self.stored_dtype == W.dtype else W.to(self.stored_dtype).to(W.dtype)

    def advance(self, units: int, activity: str) -> None:
        """Report `units` more as done; stop if cancellation was requested."""
        self.done_units += units
        self.reporter.progress(self.done_units, self.total_units, activity)
        self.safe_point()

    def safe_point(self) -> None:
        """Stop if cancellation was requested."""
        stop_if_asked(self.reporter)

    def wait_for_storage(self) -> None:
        """Wait until every finished block is stored."""
        if (pending := self.pending_storage) is not None:
            self.pending_storage = None
            with self.timed("checkpoints"):
                pending.result()

    def forward(self, stream: BlockStream, block: int, hidden: HiddenStates) -> HiddenStates:
        """Run `block` with its current weights on the inputs `hidden` and return its outputs."""
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
        """Run `block` on `hidden` and collect input statistics of some of its linears.

        Args:
            stream: arguments of the forward passes.
            block: index of the block.
            modules: names of the linears.
            hidden: inputs of the block.
            level: statistics to collect.
            outputs: compute the block's outputs; otherwise the pass ends at the last linear.

        Returns:
            module -> statistics, and the block's outputs.
        """
        linears = {module: x for module, x in self.linears(block).items() if module in modules}
        return collect_inputs(
            self.model, stream, block, hidden, linears, level, self.safe_point, outputs
        )


class BlockWork:
    """Work of one pass on one decoder block.

    Attributes:
        run: state of the run.
        stream: arguments of the forward passes.
        block: index of the block.
        dense: original weights of the block.
        linears: module name -> linear, for every linear to prune.
        first: weights after the first pruning.
        stages: stage -> weights that this pass has computed.
        report: measurements on this block.
        timed: timer of the steps on this block.
    """

    def __init__(self, run: SDSRun, stream: BlockStream, block: int, dense: Weights) -> None:
        self.run, self.stream, self.block, self.dense = run, stream, block, dense
        self.linears = run.linears(block)
        self.first: Weights = {}
        self.stages: dict[SDSStage, Weights] = defaultdict(dict)
        self.report = BlockReport(weights=sum(W.numel() for W in dense.values()))
        self.timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        self._references: dict[str, ReferenceTensor] = {}
        self._measurements: list[Future[TensorMeasurement]] = []

    def write(self, weights: Weights) -> None:
        """Write `weights`, module -> W, into the model."""
        for module, W in weights.items():
            self.linears[module].write(W)

    def modules(self, activity: str) -> Iterator[str]:
        """Iterate over the block's module names; report progress and check for cancellation."""
        for module in self.linears:
            yield module
            self.run.advance(1, at_block(self.block, self.run.blocks, activity))

    def forward(self, hidden: HiddenStates) -> HiddenStates:
        """Run the block with its current weights on the inputs `hidden` and return its outputs."""
        with self.timed("inputs"):
            return self.run.forward(self.stream, self.block, hidden)

    def collect_inputs(
        self, hidden: HiddenStates, level: StatisticsLevel, outputs: bool = True
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run the block on `hidden`; return input statistics of its linears, and its outputs.

        The forward pass is skipped if neither is needed."""
        if not outputs and (level == StatisticsLevel.NOTHING or not self.linears):
            return dict.fromkeys(self.linears, InputStatistics()), []
        with self.timed("inputs"):
            return self.run.collect_inputs(
                self.stream, self.block, self.linears, hidden, level, outputs
            )

    def prune(self, weights: Weights, hidden: HiddenStates, activity: str) -> Weights:
        """Prune `weights` for the inputs `hidden` and return the pruned weights.

        The model holds `weights` while the inputs are collected, and the pruned weights after."""
        self.write(weights)
        groups = (self.run.plan.layers[linear.name] for linear in self.linears.values())
        needs = (PRUNERS[group.pruner].needs for group in groups)
        level = max(needs, default=StatisticsLevel.NOTHING)
        inputs, _ = self.collect_inputs(hidden, level, outputs=False)
        if self.report.weights > SMALL_BLOCK_WEIGHTS:
            # The stages of two blocks must not be in memory at once.
            self.run.wait_for_storage()
        pruned = Weights()
        for module in self.modules(activity):
            with self.timed("pruning"):
                pruned[module] = self._prune_linear(module, weights[module], inputs[module])
        self.write(pruned)
        return pruned

    def _prune_linear(self, module: str, W: Tensor, inputs: InputStatistics) -> Tensor:
        """Prune `W`, raising the damping while the Hessian is not positive definite.

        Raises:
            ComputeError: no damping helped.
        """
        name = self.linears[module].name
        group, pattern = self.run.plan.layers[name], self.run.patterns[name]
        pruner = PRUNERS[group.pruner]
        if not inputs.tokens and pruner.needs:
            self.warn(f"No calibration token reaches {name}. It is pruned by its weights alone.")

        def solve(damping: float) -> Tensor:
            return self.run.rounded(pruner.prune(W, inputs, pattern, damping))

        return search_damping(solve, group.damping, self.warn, name, FAILURE)

    def adjust(
        self, stage: SDSStage, module: str, start: Tensor, target: DenseReference, soft: bool
    ) -> Tensor:
        """Adjust the sparse weights `start` of `module` toward the outputs of `target`.

        See `weight_adjustment.adjust`."""
        name = self.linears[module].name
        with self.timed(stage):
            steps, pattern = self.run.config.adjust_steps, self.run.patterns[name]
            W = adjust(start, target.dense, target.inputs, pattern, steps, soft)
        return self.run.rounded(W)

    def record(
        self, stage: SDSStage, module: str, W: Tensor, target: DenseReference | None = None
    ) -> None:
        """Record `W` [out, in] as `module` at `stage` and queue its measurement.

        Raises:
            ComputeError: the solver diverged.
        """
        if not all_finite(W):
            raise _divergence_error(self.linears[module].name, stage)
        self.stages[stage][module] = W
        with self.timed("statistics"):
            measurement = self.run.statistics.submit(self._measure, stage, module, W, target)
        self._measurements.append(measurement)

    def _measure(
        self, stage: SDSStage, module: str, W: Tensor, target: DenseReference | None
    ) -> TensorMeasurement:
        extra_stats: dict[str, float] = {}
        if target is not None:
            extra_stats[RELATIVE_ERROR] = target.relative_error(W)
        if stage not in (SDSStage.DENSE, SDSStage.REDENSE):
            extra_stats["mask_overlap"] = overlap(W != 0, self.first[module] != 0)
        if module not in self._references:
            self._references[module] = ReferenceTensor(self.dense[module])
        return self._references[module].measure(
            W,
            tensor=f"{self.linears[module].name}.weight",
            block=self.block,
            module=module,
            stage=stage,
            more=extra_stats,
            # Stages that are not on the path from the dense to the final weights have no spectra.
            spectral=stage not in (SDSStage.CONTROL, SDSStage.SECOND, SDSStage.FIRST_BLOCKS),
            energy=target.inputs.energy if target and stage == SDSStage.FIRST else None,
        )

    def warn(self, text: str) -> None:
        """Log `text` and add it to the warnings of the result."""
        self.report.warnings.append(text)
        self.run.reporter.log(text)

    def save(self, pass_name: str) -> None:
        """Queue the storage of the stages of this pass, which follows their measurement.

        `SDSRun.wait_for_storage` waits for it."""
        # Stages come from the plan: a block without pruned layers has its (empty) stages, too.
        stages = {x: self.stages[x] for x in self.run.plan.stages if PASS_OF[x] == pass_name}
        self.run.wait_for_storage()
        self.run.pending_storage = self.run.storage.submit(self._store, pass_name, stages)

    def _store(self, pass_name: str, stages: dict[SDSStage, Weights]) -> None:
        """Report the block's statistics and mean errors, then store its stages.

        The report comes first because a stored block is not reported again."""
        # A separate timer: this runs on another thread, and the run does not wait for it.
        background_timer = StepTimer(self.timed.where)
        for pending in self._measurements:
            with background_timer("statistics"):
                measurement = pending.result()
            snapshot, stage = measurement.snapshot, SDSStage(measurement.snapshot.stage)
            self.report.zeros[stage] = self.report.zeros.get(stage, 0) + snapshot.zeros
            if RELATIVE_ERROR in snapshot.stats:
                by_module = self.report.errors.setdefault(stage, {})
                by_module[snapshot.module] = snapshot.stats[RELATIVE_ERROR]
            measurement.report(self.run.reporter)
        for name, errors in self.report.errors.items():
            key = MetricKey("error", name, axis="block")
            self.run.reporter.metric(key, fmean(errors.values()), self.block)
        self.report.seconds = dict(self.timed.seconds)
        self.run.store.save(pass_name, self.block, stages, self.report)


def _divergence_error(name: str, stage: SDSStage) -> ComputeError:
    cause, field = "The solver diverged.", "damping"
    advice = "Use more calibration text, or raise the damping."
    if stage in RECONSTRUCTED:
        cause, field = "The block reconstruction diverged.", "reconstruct_rate"
        advice = "Lower its learning rate, or choose float32 as the forward precision."
    return ComputeError(f"{name} is not finite at stage {stage}.", cause, advice, field=field)
