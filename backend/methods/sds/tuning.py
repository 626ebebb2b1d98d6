"""Damping of each block, chosen by the error on held-out segments (ours).

    damping = argmin_a  mean over linears of e(prune_a(W, H))

    e(V) = tr(D H_held D^T) / tr(W_dense H_held W_dense^T),   D = V - W_dense

H is the Gram that the pruner is given; H_held is that of the held-out segments, which pass through
the same sparse blocks in a stream of their own. On H itself, little damping looks best; where
segments are few, it is not on other text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean

from torch import Tensor

from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.linalg import NotPositiveDefiniteError
from backend.methods.sds.block_work import BlockWork, SDSRun
from backend.methods.sds.config import STAGE_LABELS, SDSStage
from backend.methods.sds.stage_store import Weights
from backend.models.block_forward import open_stream
from backend.reporter import at_block

Inputs = Mapping[str, InputStatistics]  # by module name
References = Mapping[str, DenseReference]
Prune = Callable[[str, Tensor, InputStatistics], Tensor]  # module, its weights and inputs


class Tuner:
    """The held-out segments on their way through the blocks, and the damping they choose.

    Attributes:
        stage: the pruning whose damping is chosen.
        hidden: the inputs [b, L, d] of the current block.
    """

    def __init__(self, run: SDSRun, stage: SDSStage) -> None:
        self.run, self.config, self.stage = run, run.config, stage
        self.stream = open_stream(run.model, run.heldout, self.config.batch, run.dtype, run.new)
        self.hidden, self.stream.hidden = self.stream.hidden, []

    def damping(self, work: BlockWork, pruner: str, weights: Weights, inputs: Inputs) -> float:
        """The damping to prune those linears with whose `inputs` are given: that of lowest error,
        of equal ones the first.

        It is kept in the report of all linears it is used for, also of those that no held-out token
        is sent to.
        """
        tried = self.config.dampings(pruner)
        held = self._references(work, inputs) if tried else {}
        if not held:
            return self.config.damping
        errors = {}
        for damping in tried:
            self.run.advance(0, at_block(work.block, self.run.blocks, "Tuning"))
            prune = partial(work.prune_with, damping, pruner)
            with work.timed("tuning"):
                errors[damping] = self._mean_error(prune, weights, _without_factors(inputs), held)
        best = min(tried, key=errors.__getitem__)
        chosen = work.report.tuned.setdefault(f"damping/{self.stage}", {})
        chosen.update(dict.fromkeys(inputs, best))
        self._log(work, best, errors, held)
        return best

    def advance(self, work: BlockWork) -> None:
        """Move the held-out segments past the block, with its current weights."""
        with work.timed("tuning"):
            self.hidden = self.run.forward(self.stream, work.block, self.hidden)

    def _references(self, work: BlockWork, modules: Collection[str]) -> References:
        """The dense linears on the held-out inputs, but for experts that no token is sent to."""
        if not modules:
            return {}
        with work.timed("tuning"):
            inputs, _ = self.run.collect_inputs(
                self.stream, work.block, modules, self.hidden, StatisticsLevel.GRAM, outputs=False
            )
        return {m: DenseReference(work.dense[m], each) for m, each in inputs.items() if each.tokens}

    def _mean_error(
        self, prune: Prune, weights: Weights, inputs: Inputs, held: References
    ) -> float:
        """Mean relative error of the pruned weights; infinite where a solver fails."""
        errors = []
        try:
            for module, target in held.items():
                self.run.safe_point()
                errors.append(target.relative_error(prune(module, weights[module], inputs[module])))
        except NotPositiveDefiniteError:
            return math.inf
        return error if math.isfinite(error := fmean(errors)) else math.inf

    def _log(
        self, work: BlockWork, best: float, errors: Mapping[float, float], modules: Collection[str]
    ) -> None:
        own = self.config.damping
        other = "" if best == own else f", {errors[own]:.5f} with {own:g}"
        self.run.reporter.log(
            f"{at_block(work.block, self.run.blocks)}: damping {best:g} "
            f"({STAGE_LABELS[self.stage]}; {', '.join(modules)}). "
            f"Held-out error {errors[best]:.5f}{other}."
        )


def _without_factors(inputs: Inputs) -> Inputs:
    """Copies that share their Grams, and forget with this search what solvers derive from them."""
    copies = {id(each): replace(each) for each in inputs.values()}
    return {module: copies[id(each)] for module, each in inputs.items()}
