"""Block-wise training, a baseline for DL-QAT: the weights of a block and their grids are trained
until the outputs of the rounded block match those of the dense block.

This is the first stage of EfficientQAT (Block-AP: Chen et al., arXiv 2407.11062), with the starting
weights of DL-QAT and with scales trained as a factor m:

    q    = clamp( round(W / (m s) + z), 0, Q )       round is the identity in the backward pass
    What = m s (q - z)                               trained: W, m, and z on a grid with offsets

See `training.block_reconstruction` for objective and data. An eighth of the calibration segments is
held out to choose the epoch (ours). EfficientQAT's second stage, which trains scales on text,
corresponds to DL-QAT's ablation "magnitudes only".
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backend.errors import ComputeError
from backend.models.block_offload import resident
from backend.models.blocks import LinearWeight, all_finite
from backend.quantization.bases import PLAIN
from backend.quantization.config import BLOCK_EPOCHS, STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.passes import RunPass
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.grid import QuantGrid
from backend.quantization.plan import QuantSettings
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.training.block_reconstruction import Examples, Parameters, reconstruct, sizes_of

HELD_OUT_SHARE = 0.125  # share of the calibration segments
RATE = 2.6e-3  # learning rate of the weights, relative to their root mean square
RATE_M = 1e-4  # learning rate of m; ten times as much costs more than training gains
# returns the weights [out, in] of a linear before training, and their grid
Starts = Callable[[LinearWeight], tuple[Tensor, QuantGrid]]


class BlockTraining(RunPass):
    """Trains every block on the outputs of the trained blocks before it.

    Attributes:
        teacher: inputs [1, L, d] of the current block in the dense model, by segment.
    """

    batch = 1

    def __init__(self, run: DLQATRun, start: Starts, reporter: Reporter) -> None:
        super().__init__(run, DLQATStage.BLOCKS, STAGE_LABELS[DLQATStage.BLOCKS], reporter)
        self.start = start

    def open(self) -> None:
        super().open()
        self.teacher = self.stream.hidden

    def solve_block(self, block: int) -> None:
        run, linears = self.run, self.run.of_block(block)
        targets = self.forward(block, self.teacher)
        starts = {module: self.start(linear) for module, linear in linears.items()}
        grids = TrainedGrids(starts, run.settings(linears))
        count = len(run.calibration)
        training_count = count - min(count - 1, round(count * HELD_OUT_SHARE))
        result = reconstruct(
            run.model,
            Examples(self.stream, block, self.stream.hidden, targets, training_count),
            grids,
            BLOCK_EPOCHS,
            lambda: stop_if_asked(self.reporter),
            lambda epoch: self.reporter.progress(
                block + epoch / BLOCK_EPOCHS, run.blocks, self._activity(block)
            ),
        )
        if result.judged:
            self.reporter.log(f"{at_block(block, run.blocks)}: {self.label}. {result}")
        _require_finite(result.parameters, at_block(block, run.blocks))
        trained = {m: (*grids.result(result.parameters, m), PLAIN) for m in linears}
        run.store.save_starts(self.name, block, trained)
        if block < self.last:
            self.teacher = targets
            self._advance(block)

    def replay(self, block: int) -> None:
        self.teacher = self.forward(block, self.teacher)
        self._advance(block)

    def _advance(self, block: int) -> None:
        """Move the hidden states of the quantized model past a stored block."""
        run, rounded = self.run, dict[str, Tensor]()
        for linear in run.of_block(block).values():
            W, grid, _ = run.store.start(self.name, linear)
            rounded[linear.name] = grid.nearest(W)
        with resident(run.model, block), run.with_weights(rounded):
            super().replay(block)


def _require_finite(parameters: Parameters, block: str) -> None:
    """Refuse diverged weights. With held-out segments an earlier epoch would have been chosen."""
    if not all(map(all_finite, parameters.values())):
        raise ComputeError(
            f"{block}: the weights are not finite after block-wise training.",
            "Training diverged.",
            "Choose float32 as the forward precision, or remove this stage.",
            field="precision",
        )


class TrainedGrids:
    """Parameters of the linears of a block in block-wise training, and the weights they represent.

    The parameters of a module are "MODULE/m", "MODULE/p" with W = W_start + p *
    `sizes_of`(W_start), and "MODULE/z" on a grid with offsets.
    """

    def __init__(
        self,
        starts: Mapping[str, tuple[Tensor, QuantGrid]],
        settings: Mapping[str, QuantSettings],
    ) -> None:
        self.starts = starts
        self.sizes: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.rates: dict[str, float] = {}
        for module, (W, grid) in starts.items():
            self.sizes[module] = sizes_of(W)
            if settings[module].keep_zeros:
                self.sizes[module] *= W != 0
            m = torch.ones_like(grid.scale)
            self.parameters |= {f"{module}/p": torch.zeros_like(W), f"{module}/m": m}
            self.rates |= {f"{module}/p": RATE, f"{module}/m": RATE_M}
            if settings[module].grid == "offset":
                self.parameters[f"{module}/z"] = grid.zero
                # z then moves weights as far as m does
                self.rates[f"{module}/z"] = RATE_M * grid.top / 2

    def weights(self, parameters: Parameters) -> dict[str, Tensor]:
        """Map each module to What [out, in], differentiable in the parameters."""
        return {module: self._rounded(parameters, module) for module in self.starts}

    def result(self, parameters: Parameters, module: str) -> tuple[Tensor, QuantGrid]:
        """Return the weights to round [out, in] of a module, and their grid."""
        start, grid = self.starts[module]
        W = torch.addcmul(start, parameters[f"{module}/p"], self.sizes[module])
        zero = parameters.get(f"{module}/z", grid.zero)
        return W, QuantGrid(grid.bits, parameters[f"{module}/m"] * grid.scale, zero)

    def _rounded(self, parameters: Parameters, module: str) -> Tensor:
        W, grid = self.result(parameters, module)
        scale, zero = grid.scale.unsqueeze(-1), grid.zero.unsqueeze(-1)
        u = W.view(len(W), grid.groups, -1) / scale + zero
        q = (u + (u.round() - u).detach()).clamp(0, grid.top)
        return (scale * (q - zero)).view(W.shape)
