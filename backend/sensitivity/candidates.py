"""The weights of a layer in each candidate format, made by the pruner and the quantizer that a run
would use, on the Gram of the dense model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.calibration.damping_search import search_damping
from backend.calibration.second_moments import InputStatistics
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization import GridType
from backend.quantization.plan import QuantSettings
from backend.quantization.registry import QUANTIZERS
from backend.sensitivity.formats import Format

FAILURE = ("measured", "Use more calibration text, or raise the damping.")


@dataclass(frozen=True)
class Solvers:
    """How candidates are made: a pruner, a quantizer, its range search, and their damping."""

    pruner: str = "sparsegpt"
    quantizer: str = "gptq"
    grid: GridType = "symmetric"
    space: str = "weighted"
    damping: float = 0.01


@dataclass(frozen=True)
class OutputError:
    """What a change D of a layer does to its outputs on calibration text.

    Attributes:
        relative: tr(D H D^T) / tr(W H W^T).
        fisher: 1/2 sum_o F_o (D H D^T)_oo, nats a token.
    """

    relative: float
    fisher: float


def candidate(
    W: Tensor, inputs: InputStatistics, form: Format, solvers: Solvers, name: str,
    log: Callable[[str], None],
) -> Tensor:  # fmt: skip
    """`W` [out, in] float32 as it would be in a format; scales are rounded to 16 bits.

    Raises:
        ComputeError: no damping helped.
    """

    def solve(damping: float) -> Tensor:
        V = W
        if form.pattern is not None:
            V = PRUNERS[solvers.pruner].prune(V, inputs, form.pattern, damping)
        if form.width is None:
            return V
        keep = form.pattern is not None
        settings = QuantSettings(
            form.width.bits, form.width.group, solvers.grid, solvers.space, keep
        )
        V, grid = QUANTIZERS[solvers.quantizer].quantize(V, inputs, settings, damping)
        codes = grid.codes(V)
        return grid.stored(torch.float16, solvers.grid).values(codes)

    return search_damping(solve, solvers.damping, log, name, FAILURE)


def output_error(D: Tensor, W: Tensor, H: Tensor, fisher: Tensor) -> OutputError:
    """The error that D [out, in] makes; `fisher` F [out]."""
    lost = torch.linalg.vecdot(D @ H, D).clamp_(min=0)
    whole = torch.linalg.vecdot(W @ H, W).sum().item()
    relative = lost.sum().item() / whole if whole > 0 else 0.0
    return OutputError(relative, 0.5 * torch.dot(fisher.to(lost), lost).item())


def fitting(formats: Sequence[Format], columns: int) -> list[Format]:
    """Those a layer with that many inputs can be stored in, but for the dense one."""
    return [form for form in formats if form != Format() and form.fits(columns)]
