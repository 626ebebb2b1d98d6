"""Block-wise training, a rival of DL-QAT: all weights of a block and their grids are trained until
the rounded block gives what the dense one gives. As the first stage of EfficientQAT (Block-AP: Chen
et al., arXiv 2407.11062), here from the start that DL-QAT has, and with scales trained by a factor:

    q    = clamp( round(W / (m s) + z), 0, Q )       round is the identity in the backward pass
    What = m s (q - z)                               trained: W, m, and z on a grid with offsets

See `training.block_reconstruction` for objective and data; an eighth of the calibration segments is
held out to choose the epoch (ours). EfficientQAT's second stage, which trains scales on the text,
is what DL-QAT's ablation "magnitudes only" does.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from backend.errors import ComputeError
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
# linear -> its weights [out, in] before training, and their grid
Starts = Callable[[LinearWeight], tuple[Tensor, QuantGrid]]


class BlockTraining(RunPass):
    """Trains every block on the hidden states of the blocks trained before.

    Attributes:
        teacher: the inputs [1, L, d] of the current block in the dense model, by segment.
    """

    batch = 1

    def __init__(self, run: DLQATRun, start: Starts, reporter: Reporter) -> None:
        super().__init__(run, DLQATStage.BLOCKS, STAGE_LABELS[DLQATStage.BLOCKS], reporter)
        self.start = start

    def open(self) -> None:
        super().open()
        self.teacher = self.stream.hidden

    def solve(self, block: int) -> None:
        run, linears = self.run, self.run.of_block(block)
        targets = self.forward(block, self.teacher)
        starts = {module: self.start(linear) for module, linear in linears.items()}
        trained = TrainedGrids(starts, run.settings(linears))
        count = len(run.calibration)
        fitted = count - min(count - 1, round(count * HELD_OUT_SHARE))
        found = reconstruct(
            run.model,
            Examples(self.stream, block, self.stream.hidden, targets, fitted),
            trained,
            BLOCK_EPOCHS,
            lambda: stop_if_asked(self.reporter),
            lambda epoch: self.reporter.progress(
                block + epoch / BLOCK_EPOCHS, run.blocks, self._doing(block)
            ),
        )
        if found.judged:
            self.reporter.log(f"{at_block(block, run.blocks)}: {self.label}. {found}")
        _require_finite(found.parameters, at_block(block, run.blocks))
        ended = {m: (*trained.result(found.parameters, m), PLAIN) for m in linears}
        run.store.save_starts(self.name, block, ended)
        if block < self.last:
            self.teacher = targets
            self._advance(block)

    def replay(self, block: int) -> None:
        self.teacher = self.forward(block, self.teacher)
        self._advance(block)

    def _advance(self, block: int) -> None:
        """Move the hidden states of the compressed model past a stored block."""
        run, rounded = self.run, dict[str, Tensor]()
        for linear in run.of_block(block).values():
            W, grid, _ = run.store.start(self.name, linear)
            rounded[linear.name] = grid.nearest(W)
        with run.with_weights(rounded):
            super().replay(block)


def _require_finite(parameters: Parameters, block: str) -> None:
    """Refuse what diverged without held-out segments, which would have chosen another epoch."""
    if not all(map(all_finite, parameters.values())):
        raise ComputeError(
            f"{block}: the weights are not finite after block-wise training.",
            "It diverged.",
            "Choose float32 as the forward precision, or leave out this stage.",
            field="precision",
        )


class TrainedGrids:
    """What is trained of the linears of a block, and the weights it stands for: "MODULE/m",
    "MODULE/p", with W = W_start + p s (`sizes_of`), and "MODULE/z" on a grid with offsets."""

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
            ones = torch.ones_like(grid.scale)
            self.parameters |= {f"{module}/p": torch.zeros_like(W), f"{module}/m": ones}
            self.rates |= {f"{module}/p": RATE, f"{module}/m": RATE_M}
            if settings[module].grid == "offset":  # so that z moves values as far as m does
                self.parameters[f"{module}/z"] = grid.zero
                self.rates[f"{module}/z"] = RATE_M * grid.top / 2

    def weights(self, parameters: Parameters) -> dict[str, Tensor]:
        """Module -> What [out, in], to differentiate by the parameters."""
        return {module: self._rounded(parameters, module) for module in self.starts}

    def result(self, parameters: Parameters, module: str) -> tuple[Tensor, QuantGrid]:
        """Weights to round [out, in], and their grid."""
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
