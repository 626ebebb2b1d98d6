"""What both passes share: a run, and one decoder block while it is being solved.

All that a person sees while SDS works is said here: progress, snapshots, errors, warnings.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.errors import MethodFailed
from backend.methods.gram import InputCollector, Inputs, Need, NotPositiveDefinite, Target
from backend.methods.sds.adjust import adjust
from backend.methods.sds.config import SDSConfig, Stage
from backend.methods.sds.masks import overlap
from backend.methods.sds.pattern import Pattern
from backend.methods.sds.pruners import PRUNERS
from backend.methods.sds.stages import Facts, StageStore, Weights
from backend.models.blocks import Linear, block_linears, decoder_blocks
from backend.models.stream import Stream, run_block
from backend.reporter import Reporter, stop_if_asked
from backend.statistics.snapshots import scale_of, snapshot

DAMPING_TRIES = 4  # each ten times the one before


class Stopwatch:
    """Seconds spent, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the next step would pay for this one
        self.seconds[step] += time.perf_counter() - start


@dataclass
class Run:
    """One SDS run.

    Attributes:
        calibration: token ids [segments, L], without those held out.
        dtype: of the forward passes.
        total, done: units of work.
        timed: what belongs to no block's own work.
    """

    model: PreTrainedModel
    calibration: Tensor
    config: SDSConfig
    dtype: torch.dtype
    store: StageStore
    reporter: Reporter
    total: int
    done: int = 0
    timed: Stopwatch = field(default_factory=Stopwatch)

    @property
    def pattern(self) -> Pattern:
        return Pattern.parse(self.config.pattern)

    @property
    def blocks(self) -> int:
        return len(decoder_blocks(self.model))

    def advance(self, units: int, doing: str) -> None:
        """Reports `units` more as done; ends the run here if someone asked for it."""
        self.done += units
        self.reporter.progress(self.done, self.total, doing)
        stop_if_asked(self.reporter)


class BlockWork:
    """One block while it is being solved.

    Attributes:
        linears: module name -> linear.
        dense, first: the block's weights before anything was done, and after the first pruning.
        stages: what this pass has made.
    """

    def __init__(self, run: Run, stream: Stream, block: int, dense: Weights) -> None:
        self.run, self.stream, self.block, self.dense = run, stream, block, dense
        self.linears: dict[str, Linear] = block_linears(run.model, block)
        self.first: Weights = {}
        self.stages: dict[Stage, Weights] = defaultdict(dict)
        self.facts = Facts(weights=sum(W.numel() for W in dense.values()))
        self.timed = Stopwatch()
        self._scales = {module: scale_of(W) for module, W in dense.items()}

    def write(self, weights: Weights) -> None:
        """Puts `weights` into the model."""
        for module, linear in self.linears.items():
            linear.write(weights[module])

    def modules(self, doing: str) -> Iterator[str]:
        """The block's module names; progress and stop requests are seen to after each."""
        for module in self.linears:
            yield module
            self.run.advance(1, f"{doing}, block {self.block + 1} of {self.run.blocks}")

    def forward(self, hidden: list[Tensor]) -> list[Tensor]:
        """What the block, as it is in the model, makes of `hidden`."""
        return run_block(self.run.model, self.stream, self.block, hidden)

    def look(self, hidden: list[Tensor], need: Need) -> tuple[dict[str, Inputs], list[Tensor]]:
        """What every linear reads while the block runs on `hidden`, and the block's outputs.

        Without a need nothing is run, and both are empty.
        """
        if need == Need.NOTHING:
            return dict.fromkeys(self.linears, Inputs()), []
        length, safe_point = self.run.calibration.shape[1], lambda: stop_if_asked(self.run.reporter)
        with (
            self.timed("inputs"),
            InputCollector(self.linears, need, length, safe_point) as collector,
        ):
            outputs = self.forward(hidden)
            return collector.finish(), outputs

    def prune_all(self, pruner: str, weights: Weights, hidden: list[Tensor], doing: str) -> Weights:
        """`weights`, which must be in the model, pruned for the inputs seen on `hidden`."""
        seen, _ = self.look(hidden, PRUNERS[pruner].needs)
        pruned: Weights = {}
        for module in self.modules(doing):
            with self.timed("pruning"):
                pruned[module] = self.prune(pruner, module, weights[module], seen[module])
        return pruned

    def prune(self, pruner: str, module: str, W: Tensor, inputs: Inputs) -> Tensor:
        """`W` pruned; with more damping where the Hessian asks for it.

        Raises:
            MethodFailed: no damping helped.
        """
        name, damping = self.linears[module].name, self.run.config.damping
        for _ in range(DAMPING_TRIES):
            try:
                return PRUNERS[pruner].prune(W, inputs, self.run.pattern, damping)
            except NotPositiveDefinite:
                damping *= 10
                self.warn(f"{name}: Hessian not positive definite, damping raised to {damping:g}.")
        raise MethodFailed(
            f"{name} could not be pruned.",
            f"Its Hessian is not positive definite, even with a damping of {damping / 10:g}.",
            "Use more calibration text, or choose Wanda as first pruner.",
            field="damping",
        )

    def adjust(self, stage: Stage, start: Tensor, target: Target, soft: bool) -> Tensor:
        """The sparse weights `start`, adjusted towards `target`."""
        with self.timed(stage):
            steps, pattern = self.run.config.adjust_steps, self.run.pattern
            return adjust(start, target.dense, target.inputs.gram, pattern, steps, soft)

    def record(self, stage: Stage, module: str, W: Tensor, target: Target | None = None) -> None:
        """Takes `W` [out, in] as `module` at `stage` and reports its statistics.

        Raises:
            MethodFailed: the solver diverged.
        """
        name = self.linears[module].name
        if not torch.isfinite(W).all():
            raise _diverged(name, stage)
        self.stages[stage][module] = W
        more: dict[str, float] = {}
        if target is not None:
            more["relative_error"] = target.relative_error(W)
            self.facts.errors.setdefault(stage, {})[module] = more["relative_error"]
        if stage not in (Stage.DENSE, Stage.REDENSE):
            more["mask_overlap"] = overlap(W != 0, self.first[module] != 0)
        with self.timed("statistics"):
            taken = snapshot(
                W,
                self._scales[module],
                tensor=f"{name}.weight",
                block=self.block,
                module=module,
                stage=stage,
                more=more,
            )
        self.facts.zeros[stage] = self.facts.zeros.get(stage, 0) + taken.zeros
        self.run.reporter.snapshot(taken)

    def warn(self, text: str) -> None:
        """Logs `text` and keeps it for the result."""
        self.facts.warnings.append(text)
        self.run.reporter.log(text)

    def save(self, pass_name: str) -> None:
        """Reports the block's mean errors and stores what this pass made of it.

        In this order: what is stored is not reported again.
        """
        for stage, errors in self.facts.errors.items():
            self.run.reporter.metric(f"error/{stage}", fmean(errors.values()), self.block)
        self.facts.seconds = dict(self.timed.seconds)
        with self.run.timed("checkpoints"):
            self.run.store.save(pass_name, self.block, self.stages, self.facts)


def _diverged(name: str, stage: Stage) -> MethodFailed:
    return MethodFailed(
        f"{name} is not finite at stage {stage}.",
        "The solver diverged.",
        "Choose the gram solver, or lower the SGD learning rate.",
        field="redense",
    )
