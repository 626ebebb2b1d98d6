"""The pass over the blocks of the dense model that profiles the layers. It sees the Gram matrix of
every layer's inputs; a finished block is a checkpoint. The weights of a layer in each candidate
format are made by the pruner and by GPTQ as a run would make them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputStatistics, StatisticsLevel, collect_inputs
from backend.checkpoints import Checkpoints
from backend.linalg.gram import search_damping
from backend.models.block_forward import (
    BlockStream,
    even_batch,
    open_stream,
    run_block,
)
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks, swap_weights
from backend.models.families.stored import LinearShape
from backend.pruning.pattern import Pattern
from backend.pruning.pruners.registry import PRUNERS
from backend.quantization import GridType
from backend.quantization.gptq import gptq_widths
from backend.quantization.plan import QuantSettings, embedding_search
from backend.quantization.range_search import quantize_embedding
from backend.reporter import Reporter, at_block, stop_if_asked
from backend.sensitivity.measured import DenseTrace, SensitivityMeter, measure_fisher
from backend.sensitivity.profile import FIGURES, Format
from backend.training.stage_store import BlockWalk

PANEL = 192  # inputs whose products are taken at a time
FAILURE = ("measured", "Use more calibration text, or raise the damping.")
GRADIENTS, FISHER = "gradients", "fisher.safetensors"
BATCH = 4  # calibration segments a pass, at most

Figures = NDArray[np.float32]
Record = Callable[[LinearWeight, Figures], None]


@dataclass(frozen=True)
class Solvers:
    """How candidates are made: a pruner, GPTQ's grid and range search, and their damping."""

    pruner: str = "sparsegpt"
    grid: GridType = "symmetric"
    space: str = "weighted"
    damping: float = 0.01


def candidates(
    W: Tensor,
    inputs: InputStatistics,
    formats: Sequence[Format],
    solvers: Solvers,
    name: str,
    log: Callable[[str], None],
) -> dict[Format, Tensor]:
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
    W: Tensor,
    inputs: InputStatistics,
    pattern: Pattern | None,
    forms: Sequence[Format],
    solvers: Solvers,
    damping: float,
) -> dict[Format, Tensor]:
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


def output_error(D: Tensor, energy: float, H: Tensor, fisher: Tensor) -> tuple[float, float]:
    """The error that a change D [out, in] makes of outputs of that energy on calibration text,
    tr(D H D^T) / tr(W H W^T), and its Fisher estimate, 1/2 sum_o F_o (D H D^T)_oo, nats a token;
    `fisher` F [out]."""
    lost = energies(D, H).clamp_(min=0)
    relative = lost.sum().item() / energy if energy > 0 else 0.0
    return relative, 0.5 * torch.dot(fisher.to(lost), lost).item()


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


def load_fisher(dense: DenseTrace, checkpoints: Checkpoints, seed: int, reporter: Reporter) -> None:
    """Fill `dense.fisher`, from the checkpoint of an earlier attempt where there is one."""
    if folder := checkpoints.find(GRADIENTS):
        dense.fisher |= load_file(folder / FISHER)
        return
    measure_fisher(dense, seed, reporter)
    with checkpoints.write(GRADIENTS) as draft:
        save_file({name: F.cpu() for name, F in dense.fisher.items()}, draft / FISHER)


@dataclass
class SensitivityWalk(BlockWalk):
    """Profiles every layer, in one pass over the blocks of the dense model.

    Attributes:
        calibration: [segments, L].
        columns: formats of the figures, `formats` among them.
        measured: formats whose loss is measured; `meter` is None where there are none.
        record: is given the figures of a layer [figures, formats].
    """

    model: PreTrainedModel
    calibration: Tensor
    dtype: torch.dtype
    formats: Sequence[Format]
    solvers: Solvers
    checkpoints: Checkpoints
    reporter: Reporter
    columns: Sequence[Format]
    fisher: Mapping[str, Tensor]
    measured: frozenset[Format]
    meter: SensitivityMeter | None
    record: Record
    stream: BlockStream = field(init=False)

    def run(self) -> None:
        """Work on every block that is not stored yet."""
        self.walk(len(decoder_blocks(self.model)))

    def is_stored(self, block: int) -> bool:
        return self.checkpoints.find(block_name(block)) is not None

    def open(self) -> None:
        batch = even_batch(self.model, len(self.calibration), BATCH)
        self.stream = open_stream(self.model, self.calibration, batch, self.dtype)

    def replay(self, block: int) -> None:
        safe_point = partial(stop_if_asked, self.reporter)
        self.stream.advance(
            run_block(self.model, self.stream, block, self.stream.hidden, safe_point)
        )

    def solve(self, block: int) -> None:
        linears, stream = block_linears(self.model, block), self.stream
        safe_point, level = partial(stop_if_asked, self.reporter), StatisticsLevel.GRAM
        inputs, outputs = collect_inputs(
            self.model, stream, block, stream.hidden, linears, level, safe_point
        )
        for module, linear in linears.items():
            stop_if_asked(self.reporter)
            self._profile(linear, inputs[module])
        with self.checkpoints.write(block_name(block)) as draft:
            (draft / "done").touch()
        stream.advance(outputs)

    def report(self, block: int, solved: bool) -> None:
        blocks = len(decoder_blocks(self.model))
        self.reporter.progress(block + 1, blocks, at_block(block, blocks, "Layers alone"))

    def _profile(self, linear: LinearWeight, inputs: InputStatistics) -> None:
        W, found = linear.read(), np.full((len(FIGURES), len(self.columns)), np.nan, np.float32)
        trials: dict[int, Tensor] = {}
        energy = energies(W, inputs.gram).sum().item()
        forms = fitting(self.formats, linear.columns)
        made = candidates(W, inputs, forms, self.solvers, linear.name, self.reporter.log)
        for form, V in made.items():
            at = self.columns.index(form)
            found[:2, at] = output_error(V - W, energy, inputs.gram, self.fisher[linear.name])
            if form in self.measured:
                trials[at] = V
        if self.meter and trials:
            weights = [{linear.module: V} for V in trials.values()]
            for at, cost in zip(trials, self.meter.measure(linear.block, weights), strict=True):
                found[2:, at] = cost.kl, cost.loss
        self.record(linear, found)


def profile_embedding(
    model: PreTrainedModel,
    shape: LinearShape,
    formats: Sequence[Format],
    tried: Sequence[Format],
    meter: SensitivityMeter,
) -> Figures:
    """The figures [figures, formats] of the token embedding, or of a head that is not tied to it:
    what it costs, rounded to nearest as a run does, is always measured."""
    found = np.full((len(FIGURES), len(formats)), np.nan, np.float32)
    parameter = model.get_submodule(shape.name).get_parameter("weight")
    W = parameter.detach()
    for form in fitting(tried, shape.columns):
        V = rounded_embedding(W, form)
        with swap_weights({parameter: V}):
            cost = meter.measure_model()
        error = ((V - W.float()).square().sum() / W.float().square().sum()).item()
        found[:, formats.index(form)] = error, np.nan, cost.kl, cost.loss
    return found


def rounded_embedding(W: Tensor, form: Format) -> Tensor:
    """`W` [vocabulary, hidden] in a format, float32, as runs round it."""
    if form.width is None:
        return W.float()
    bits, group = form.width.bits, form.width.group
    settings = QuantSettings(bits, group, "symmetric", embedding_search(bits))
    return quantize_embedding(W, settings, torch.float16).dense()


def block_name(block: int) -> str:
    return f"block-{block:03d}"


def usual_width(dense: DenseTrace) -> int:
    """Candidates that go through the network together: as many as keep the logits small."""
    vocabulary = dense.model.config.get_text_config().vocab_size
    logits = vocabulary * dense.ids.shape[1] * torch.finfo(torch.float32).bits // 8
    return max(1, min(8, 2**28 // logits))
