"""Block-wise training, a rival of DL-QAT: all weights of a block and their grids are trained until
the rounded block gives what the dense one gives. As the first stage of EfficientQAT (Block-AP: Chen
et al., arXiv 2407.11062), here from the start that DL-QAT has, and with scales trained by a factor:

    q    = clamp( round(W / (m s) + z), 0, Q )       round is the identity in the backward pass
    What = m s (q - z)                               trained: W, m, and z on a grid with offsets

See `methods.block_reconstruction` for objective and data; an eighth of the calibration segments is
held out to choose the epoch (ours). EfficientQAT's second stage, which trains scales on the text,
is what DL-QAT's ablation "magnitudes only" does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backend.calibration.heldout import heldout_count
from backend.errors import ComputeError
from backend.models.block_forward import open_stream, run_block
from backend.models.blocks import LinearWeight
from backend.models.precision import all_finite
from backend.quantization.bases import PLAIN
from backend.quantization.dlqat.config import STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.passes import RunPass
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.grid import QuantGrid
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.training.block_reconstruction import Examples, Parameters, reconstruct

HELD_OUT = 0.125  # share of the calibration segments
RATE_M = 1e-4  # learning rate of m; ten times as much costs more than training gains
Starts = Callable[[LinearWeight], tuple[Tensor, QuantGrid]]


def train_blocks(run: DLQATRun, start: Starts, reporter: Reporter) -> None:
    """Make the stage of block-wise training and store it.

    Args:
        start: linear -> its weights [out, in] before training, and their grid.
    """
    BlockTraining(run, start, reporter).walk(run.blocks)
    stage = DLQATStage.BLOCKS
    starts = {name: run.store.start(stage, x.block, x.module) for name, x in run.linears.items()}
    run.store.save_stage(stage, {name: run.quantize(*each) for name, each in starts.items()})


class BlockTraining(RunPass):
    """Trains every block on the hidden states of the blocks trained before.

    Attributes:
        teacher: the inputs [1, L, d] of the current block in the dense model, by segment.
    """

    def __init__(self, run: DLQATRun, start: Starts, reporter: Reporter) -> None:
        super().__init__(run, DLQATStage.BLOCKS, STAGE_LABELS[DLQATStage.BLOCKS], reporter)
        self.start = start

    def open(self) -> None:
        run = self.run
        self.stream = open_stream(run.model, run.calibration, 1, run.dtype)
        self.teacher = self.stream.hidden

    def solve(self, block: int) -> None:
        run, linears = self.run, self.run.of_block(block)
        targets = run_block(run.model, self.stream, block, self.teacher, self._stop)
        trained = TrainedGrids(run, {m: self.start(linear) for m, linear in linears.items()})
        count = len(run.calibration)
        fitted = count - heldout_count(count, HELD_OUT)
        found = reconstruct(
            run.model,
            Examples(self.stream, block, self.stream.hidden, targets, fitted),
            trained,
            run.config.block_epochs,
            self._stop,
            lambda epoch: self._tick(block, epoch),
        )
        if found.judged:
            self.reporter.log(f"{at_block(block, run.blocks)}: {self.label}. {found}")
        _require_finite(found.parameters, at_block(block, run.blocks))
        starts = {m: (*trained.result(found.parameters, m), PLAIN) for m in linears}
        run.store.save_starts(self.name, block, starts)
        if block < self.last:
            self.teacher = targets
            self._advance(block)

    def replay(self, block: int) -> None:
        run = self.run
        self.teacher = run_block(run.model, self.stream, block, self.teacher, self._stop)
        self._advance(block)

    def _advance(self, block: int) -> None:
        """Move the hidden states of the compressed model past a stored block."""
        run, rounded = self.run, dict[str, Tensor]()
        for module, linear in run.of_block(block).items():
            W, grid, _ = run.store.start(self.name, block, module)
            rounded[linear.name] = grid.nearest(W)
        with run.with_weights(rounded):
            super().replay(block)

    def _tick(self, block: int, epoch: int) -> None:
        done = block + epoch / self.run.config.block_epochs
        self.reporter.progress(done, self.run.blocks, self._doing(block))

    def _stop(self) -> None:
        stop_if_asked(self.reporter)


def _require_finite(parameters: Parameters, block: str) -> None:
    """Refuse what diverged without held-out segments, which would have chosen another epoch."""
    if not all(map(all_finite, parameters.values())):
        raise ComputeError(
            f"{block}: the weights are not finite after block-wise training.",
            "It diverged.",
            "Lower its learning rate, or choose float32 as the forward precision.",
            field="block_rate",
        )


class TrainedGrids:
    """What is trained of the linears of a block, and the weights it stands for: "MODULE/W",
    "MODULE/m", and "MODULE/z" on a grid with offsets."""

    def __init__(self, run: DLQATRun, starts: Mapping[str, tuple[Tensor, QuantGrid]]) -> None:
        self.grids = {module: grid for module, (_, grid) in starts.items()}
        config, self.masks = run.config, dict[str, Tensor]()
        self.parameters: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}
        for module, (W, grid) in starts.items():
            self._add(f"{module}/W", W, config.block_rate)
            self._add(f"{module}/m", torch.ones_like(grid.scale), RATE_M)
            if config.grid == "offset":  # so that z moves values as far as m does
                self._add(f"{module}/z", grid.zero, RATE_M * grid.top / 2)
            if config.keep_zeros:
                self.masks[module] = (W != 0).to(W.dtype)

    def _add(self, name: str, start: Tensor, rate: float) -> None:
        self.parameters[name], self.rates[name] = start, rate

    def weights(self, parameters: Parameters) -> dict[str, Tensor]:
        """Module -> What [out, in], to differentiate by the parameters."""
        return {module: self._rounded(parameters, module) for module in self.grids}

    def result(self, parameters: Parameters, module: str) -> tuple[Tensor, QuantGrid]:
        """Weights to round [out, in], and their grid."""
        grid, W = self.grids[module], parameters[f"{module}/W"]
        zero = parameters.get(f"{module}/z", grid.zero)
        W = W if module not in self.masks else W * self.masks[module]
        return W, QuantGrid(grid.bits, parameters[f"{module}/m"] * grid.scale, zero)

    def _rounded(self, parameters: Parameters, module: str) -> Tensor:
        W, grid = self.result(parameters, module)
        scale, zero = grid.scale.unsqueeze(-1), grid.zero.unsqueeze(-1)
        u = W.view(len(W), grid.groups, -1) / scale + zero
        q = (u + (u.round() - u).detach()).clamp(0, grid.top)
        return (scale * (q - zero)).view(W.shape)
