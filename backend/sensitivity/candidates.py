"""The weights of a layer in each candidate format, made by the pruner and by GPTQ as a run would,
on the Gram of the dense model's inputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from backend.calibration.damping_search import search_damping
from backend.calibration.second_moments import InputStatistics
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization import GridType
from backend.quantization.gptq import gptq_widths
from backend.quantization.plan import QuantSettings
from backend.sensitivity.formats import Format

PANEL = 192  # inputs whose products are taken at a time
FAILURE = ("measured", "Use more calibration text, or raise the damping.")


@dataclass(frozen=True)
class Solvers:
    """How candidates are made: a pruner, GPTQ's grid and range search, and their damping."""

    pruner: str = "sparsegpt"
    grid: GridType = "symmetric"
    space: str = "weighted"
    damping: float = 0.01


@dataclass(frozen=True)
class OutputError:
    """What a change D of a layer does to its outputs on calibration text. `relative`: tr(D H D^T) /
    tr(W H W^T). `fisher`: 1/2 sum_o F_o (D H D^T)_oo, nats a token."""

    relative: float
    fisher: float


def candidates(
    W: Tensor, inputs: InputStatistics, formats: Sequence[Format], solvers: Solvers, name: str,
    log: Callable[[str], None],
) -> dict[Format, Tensor]:  # fmt: skip
    """`W` [out, in] float32 as it would be in each format; scales are rounded to 16 bits. Formats
    that differ in bits alone are made in one pass. Raises ComputeError: no damping helped."""
    alike: dict[tuple[Pattern | None, int | None], list[Format]] = {}
    for form in formats:
        group = form.width.group if form.width else None
        alike.setdefault((form.pattern, group), []).append(form)
    made: dict[Format, Tensor] = {}
    for (pattern, _), forms in alike.items():
        solve = partial(_made, W, inputs, pattern, forms, solvers)
        made |= search_damping(solve, solvers.damping, log, name, FAILURE)
    return made


def _made(
    W: Tensor, inputs: InputStatistics, pattern: Pattern | None, forms: Sequence[Format],
    solvers: Solvers, damping: float,
) -> dict[Format, Tensor]:  # fmt: skip
    V = W if pattern is None else PRUNERS[solvers.pruner].prune(W, inputs, pattern, damping)
    widths = [
        QuantSettings(x.width.bits, x.width.group, solvers.grid, solvers.space, pattern is not None)
        for x in forms
        if x.width
    ]
    if not widths:
        return dict.fromkeys(forms, V)
    found = gptq_widths(V, inputs, widths, damping)
    values = (
        grid.stored(torch.float16, solvers.grid).values(grid.codes(part)) for part, grid in found
    )
    return dict(zip(forms, values, strict=True))


def output_error(D: Tensor, energy: float, H: Tensor, fisher: Tensor) -> OutputError:
    """The error that D [out, in] makes of outputs of that energy; `fisher` F [out]."""
    lost = energies(D, H).clamp_(min=0)
    relative = lost.sum().item() / energy if energy > 0 else 0.0
    return OutputError(relative, 0.5 * torch.dot(fisher.to(lost), lost).item())


def energies(D: Tensor, H: Tensor) -> Tensor:
    """The diagonal of D H D^T [out], D [out, in]; of the symmetric H one half is read, which is
    counted twice."""
    total = D.new_zeros(len(D))
    for a in range(0, len(H), PANEL):
        here = D[:, a : a + PANEL]
        products = here @ H[a : a + PANEL, a:]
        products[:, PANEL:] *= 2
        total += torch.linalg.vecdot(products, D[:, a:])
    return total


def fitting(formats: Sequence[Format], columns: int) -> list[Format]:
    """Those a layer with that many inputs can be stored in, but for the dense one."""
    return [form for form in formats if form != Format() and form.fits(columns)]
