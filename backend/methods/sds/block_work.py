"""One decoder block while it is being solved.

All that a person sees while SDS works is said here: progress, snapshots, errors, warnings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from backend.errors import ComputeError
from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.linalg import with_damping
from backend.methods.sds.config import SDSStage
from backend.methods.sds.masks import overlap
from backend.methods.sds.pruners.registry import PRUNERS
from backend.methods.sds.run import SDSRun
from backend.methods.sds.stage_store import PASS_OF, BlockReport, Weights
from backend.methods.sds.timing import StepTimer
from backend.methods.sds.weight_adjustment import adjust
from backend.models.block_forward import BlockStream
from backend.models.hidden_states import HiddenStates
from backend.statistics.reference import ReferenceTensor

FAILED = ("pruned", "Use more calibration text, or choose Wanda as first pruner.")


class BlockWork:
    """One block while it is being solved.

    Attributes:
        linears: module name -> linear, of those that are pruned.
        dense, first: the block's weights before anything was done, and after the first pruning.
        stages: what this pass has made.
    """

    def __init__(self, run: SDSRun, stream: BlockStream, block: int, dense: Weights) -> None:
        self.run, self.stream, self.block, self.dense = run, stream, block, dense
        self.linears = run.linears(block)
        self.first: Weights = {}
        self.stages: dict[SDSStage, Weights] = defaultdict(dict)
        self.facts = BlockReport(weights=sum(W.numel() for W in dense.values()))
        self.timed = StepTimer(f" of block {block + 1} of {run.blocks}")
        with self.timed("statistics"):
            self._references = {module: ReferenceTensor(W) for module, W in dense.items()}

    def write(self, weights: Weights) -> None:
        """Puts `weights`, of all or some linears, into the model."""
        for module, W in weights.items():
            self.linears[module].write(W)

    def modules(self, doing: str, some: Iterable[str] | None = None) -> Iterator[str]:
        """The block's module names; progress and stop requests are seen to after each."""
        for module in self.linears if some is None else some:
            yield module
            self.run.advance(1, f"{doing}, block {self.block + 1} of {self.run.blocks}")

    def forward(self, hidden: HiddenStates) -> HiddenStates:
        """What the block, as it is in the model, makes of `hidden`."""
        with self.timed("inputs"):
            return self.run.forward(self.stream, self.block, hidden)

    def look(
        self,
        hidden: HiddenStates,
        need: StatisticsLevel,
        modules: Iterable[str] | None = None,
        outputs: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """What all or some linears read while the block runs on `hidden`, and its outputs.

        Where neither is wanted nothing is run.
        """
        modules = list(self.linears if modules is None else modules)
        if not outputs and (need == StatisticsLevel.NOTHING or not modules):
            return dict.fromkeys(modules, InputStatistics()), []
        with self.timed("inputs"):
            return self.run.look(self.stream, self.block, modules, hidden, need, outputs)

    def prune_all(self, pruner: str, weights: Weights, hidden: HiddenStates, doing: str) -> Weights:
        """`weights`, pruned for the inputs seen on `hidden`. Both are put into the model.

        In the order "sub-block", linears that read the same input are pruned at once, and those
        after them read what the pruned ones put out.
        """
        self.write(weights)
        groups, pruned = [list(self.linears)], Weights()
        if self.run.config.order == "sub-block":
            groups = self.groups(hidden)
        for group in groups:
            seen, _ = self.look(hidden, PRUNERS[pruner].needs, group, outputs=False)
            for module in self.modules(doing, group):
                with self.timed("pruning"):
                    pruned[module] = self.prune(pruner, module, weights[module], seen[module])
            self.write({module: pruned[module] for module in group})
        return {module: pruned[module] for module in self.linears}

    def groups(self, hidden: HiddenStates) -> list[list[str]]:
        """Module names of linears that read the same tensor, in the order in which they run."""
        groups: list[tuple[Tensor, list[str]]] = []

        def note(module: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
            same = next((names for x, names in groups if x is args[0]), None)
            if same is None:
                groups.append((args[0], [module]))
            else:
                same.append(module)

        first = replace(self.stream, calls=[calls[:1] for calls in self.stream.calls], new=list)
        with ExitStack() as stack:
            for module, linear in self.linears.items():
                hook = linear.layer.register_forward_pre_hook(partial(note, module))
                stack.callback(hook.remove)
            self.run.forward(first, self.block, [next(iter(hidden))])
        return [names for _, names in groups]

    def prune(self, pruner: str, module: str, W: Tensor, inputs: InputStatistics) -> Tensor:
        """`W` pruned; with more damping where the Hessian asks for it.

        Raises:
            MethodFailed: no damping helped.
        """
        name = self.linears[module].name
        solve = partial(PRUNERS[pruner].prune, W, inputs, self.run.patterns[name])
        return with_damping(solve, self.run.config.damping, self.warn, name, FAILED)

    def adjust(
        self, stage: SDSStage, module: str, start: Tensor, target: DenseReference, soft: bool
    ) -> Tensor:
        """The sparse weights `start` of `module`, adjusted towards `target`."""
        name = self.linears[module].name
        with self.timed(stage):
            steps, pattern = self.run.config.adjust_steps, self.run.patterns[name]
            return adjust(start, target.dense, target.inputs, pattern, steps, soft)

    def record(
        self, stage: SDSStage, module: str, W: Tensor, target: DenseReference | None = None
    ) -> None:
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
        if stage not in (SDSStage.DENSE, SDSStage.REDENSE):
            more["mask_overlap"] = overlap(W != 0, self.first[module] != 0)
        with self.timed("statistics"):
            taken = self._references[module].measure(
                W,
                tensor=f"{name}.weight",
                block=self.block,
                module=module,
                stage=stage,
                more=more,
            )
        self.facts.zeros[stage] = self.facts.zeros.get(stage, 0) + taken.snapshot.zeros
        taken.report(self.run.reporter)

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
        # By name: a block of which no layer is pruned has its stages too.
        made = {x: self.stages[x] for x in self.run.config.stages if PASS_OF[x] == pass_name}
        with self.run.timed("checkpoints"):
            self.run.store.save(pass_name, self.block, made, self.facts)


def _diverged(name: str, stage: SDSStage) -> ComputeError:
    return ComputeError(
        f"{name} is not finite at stage {stage}.",
        "The solver diverged.",
        "Choose the gram solver, or lower the SGD learning rate.",
        field="redense",
    )
