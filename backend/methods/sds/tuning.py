"""Damping and L1 penalty of each block, chosen by the error on held-out segments (ours).

    damping = argmin_a  mean over linears of e(prune_a(W, H))
    l1      = argmin_a  mean over linears of e(prune(redense_a(W_sparse, W_dense, H'), H'))

    e(V) = tr(D H_held D^T) / tr(W_dense H_held W_dense^T),   D = V - W_dense

H and H' are the Grams that the pruner and the re-dense step are given; H_held is that of the
held-out segments, which pass through the same sparse blocks in a stream of their own. On H itself,
little damping looks best; where segments are few, it is not on other text. The L1 penalty is judged
by what it is for: the second pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from torch import Tensor

from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.linalg import NotPositiveDefiniteError
from backend.methods.sds.block_work import BlockWork, SDSRun
from backend.methods.sds.config import STAGE_LABELS, SDSConfig, SDSStage
from backend.methods.sds.redense import SOLVERS
from backend.methods.sds.stage_store import Weights
from backend.models.block_forward import open_stream
from backend.reporter import at_block

Inputs = Mapping[str, InputStatistics]  # by module name
References = Mapping[str, DenseReference]
LOGGED = {"damping": "damping", "l1": "L1 penalty"}
Pruned = Callable[[float], Iterator[tuple[str, Tensor]]]  # a value to try -> module, its weights


class Tuner:
    """The held-out segments on their way through the blocks, and what is chosen by them.

    Attributes:
        stage: the pruning whose damping is chosen.
        hidden: the inputs [b, L, d] of the current block.
    """

    def __init__(self, run: SDSRun, stage: SDSStage) -> None:
        self.run, self.config, self.stage = run, run.config, stage
        self.stream = open_stream(run.model, run.heldout, self.config.batch, run.dtype, run.new)
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def damping(self, work: BlockWork, pruner: str, weights: Weights, inputs: Inputs) -> float:
        """The damping to prune those linears with whose `inputs` are given."""
        tried = self.config.dampings(pruner)
        if not tried or not inputs:
            return self.config.damping
        held = self._collect(work, inputs, outputs=False)

        def pruned(damping: float) -> Iterator[tuple[str, Tensor]]:
            copies = _without_factors(inputs)
            for module in held:
                each = copies[module]
                yield module, work.prune_with(damping, pruner, module, weights[module], each)

        return self._choose(work, f"damping/{self.stage}", tried, pruned, held, inputs)

    def with_l1(self, work: BlockWork, inputs: Inputs, held: References) -> SDSConfig:
        """The config with the L1 penalty to re-densify the block with.

        Args:
            inputs: of the re-dense step.
            held: as `advance` returned it.
        """
        tried, pruner = self.config.l1_penalties, self.config.second_pruner
        if not tried:
            return self.config
        dampings = work.report.tuned.get(f"damping/{self.stage}", {})

        def config(l1: float) -> SDSConfig:
            return self.config.model_copy(update={"l1": l1})

        def pruned(l1: float) -> Iterator[tuple[str, Tensor]]:
            solve, copies = SOLVERS[self.config.redense].solve, _without_factors(inputs)
            for module, target in held.items():
                each, damping = copies[module], dampings.get(module, self.config.damping)
                W = solve(work.first[module], target.dense, each, config(l1))
                yield module, work.prune_with(damping, pruner, module, W, each)

        return config(self._choose(work, f"l1/{SDSStage.REDENSE}", tried, pruned, held, inputs))

    def advance(self, work: BlockWork) -> References:
        """Move the held-out segments past the block, with its current weights.

        Returns:
            For `with_l1`: the dense linears on the inputs they had.
        """
        if self.stage == SDSStage.FIRST and self.config.l1_penalties:
            return self._collect(work, work.linears, outputs=True)
        with work.timed("tuning"):
            self.hidden = self.run.forward(self.stream, work.block, self.hidden)
        return {}

    def _collect(self, work: BlockWork, modules: Collection[str], outputs: bool) -> References:
        """The dense linears on the held-out inputs, but for experts that no token is sent to.

        Args:
            outputs: move the held-out segments past the block, too.
        """
        with work.timed("tuning"):
            inputs, hidden = self.run.collect_inputs(
                self.stream, work.block, modules, self.hidden, StatisticsLevel.GRAM, outputs
            )
        self.hidden = hidden if outputs else self.hidden
        return {m: DenseReference(work.dense[m], each) for m, each in inputs.items() if each.tokens}

    def _choose(
        self,
        work: BlockWork,
        name: str,
        tried: Sequence[float],
        pruned: Pruned,
        held: References,
        modules: Collection[str],
    ) -> float:
        """The value of lowest error, of equal ones the first; logged, and kept in the report of all
        `modules` it is used for, those that no held-out token is sent to included."""
        if not held:
            return tried[0]
        errors = {}
        for value in tried:
            self.run.advance(0, at_block(work.block, self.run.blocks, "Tuning"))
            with work.timed("tuning"):
                errors[value] = self._mean_error(pruned(value), held)
        best, first = min(tried, key=errors.__getitem__), tried[0]
        work.report.tuned.setdefault(name, {}).update(dict.fromkeys(modules, best))
        quantity, _, stage = name.partition("/")
        other = "" if best == first else f", {errors[first]:.5f} with {first:g}"
        self.run.reporter.log(
            f"{at_block(work.block, self.run.blocks)}: {LOGGED[quantity]} {best:g} "
            f"({STAGE_LABELS[stage]}; {', '.join(held)}). Held-out error {errors[best]:.5f}{other}."
        )
        return best

    def _mean_error(self, pruned: Iterator[tuple[str, Tensor]], held: References) -> float:
        """Mean relative error of pruned weights; infinite where a solver fails."""
        errors = []
        try:
            for module, W in pruned:
                self.run.safe_point()
                errors.append(held[module].relative_error(W))
        except NotPositiveDefiniteError:
            return math.inf
        return error if math.isfinite(error := fmean(errors)) else math.inf


def _without_factors(inputs: Inputs) -> Inputs:
    """Copies that share their Grams, and forget with this search what solvers derive from them."""
    copies = {id(each): replace(each) for each in inputs.values()}
    return {module: copies[id(each)] for module, each in inputs.items()}
