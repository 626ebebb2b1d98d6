"""Pass over the blocks of the dense model that profiles every layer.

It collects the Gram matrix of every layer's inputs; each finished block is a checkpoint. Pruner and
GPTQ make the weights of a layer in each candidate format in the same way as in a run. Errors and
losses of a format are estimated on held-out windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.second_moments import InputStatistics, StatisticsLevel, collect_inputs
from backend.checkpoints import Checkpoints
from backend.linalg.gram import search_damping
from backend.models.block_forward import (
    BlockStream,
    balanced_batch_size,
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
from backend.sensitivity.measured import DenseTrace, LayerTrace, SensitivityMeter, trace_layers
from backend.sensitivity.profile import FIGURES, Format
from backend.training.stage_store import BlockWalk

# Participle and advice in the error of a layer whose Hessian no damping makes positive definite.
FAILURE = ("measured", "Use more calibration text, or raise the damping.")
BATCH = 4  # maximum number of calibration segments per forward pass

Figures = NDArray[np.float32]  # [figures, formats]
Record = Callable[[LinearWeight, Figures], None]


@dataclass(frozen=True)
class Solvers:
    """Methods that make candidates.

    Attributes:
        pruner: name of the pruner.
        grid: grid type of GPTQ.
        range_search: range search of GPTQ.
        damping: damping of both, relative to the mean input energy.
    """

    pruner: str = "sparsegpt"
    grid: GridType = "symmetric"
    range_search: str = "weighted"
    damping: float = 0.01


def candidates(
    W: Tensor,
    inputs: InputStatistics,
    formats: Sequence[Format],
    solvers: Solvers,
    name: str,
    log: Callable[[str], None],
) -> dict[Format, Tensor]:
    """Make the weights of a layer in each format, with scales rounded to 16 bits.

    Formats that differ only in bits share one pass of GPTQ.

    Args:
        W: dense weights [out, in], float32.
        inputs: statistics of the layer's inputs.
        formats: candidate formats.
        solvers: methods to use.
        name: name of the layer in errors.
        log: called with a line on every increase of the damping.

    Returns:
        format -> weights [out, in].

    Raises:
        ComputeError: no damping helped.
    """
    by_solver: dict[tuple[Pattern | None, int | None], list[Format]] = {}
    for fmt in formats:
        group = fmt.width.group if fmt.width else None
        by_solver.setdefault((fmt.pattern, group), []).append(fmt)
    weights: dict[Format, Tensor] = {}
    for (pattern, _), solver_formats in by_solver.items():
        solve = partial(_solve, W, inputs, pattern, solver_formats, solvers)
        weights |= search_damping(solve, solvers.damping, log, name, FAILURE)
    return weights


def _solve(
    W: Tensor,
    inputs: InputStatistics,
    pattern: Pattern | None,
    formats: Sequence[Format],
    solvers: Solvers,
    damping: float,
) -> dict[Format, Tensor]:
    """Weights in formats that share a pattern and a group size."""
    V = W if pattern is None else PRUNERS[solvers.pruner].prune(W, inputs, pattern, damping)
    widths = [
        QuantSettings(
            x.width.bits, x.width.group, solvers.grid, solvers.range_search, pattern is not None
        )
        for x in formats
        if x.width
    ]
    if not widths:
        return dict.fromkeys(formats, V)
    results = gptq_widths(V, inputs, widths, damping)
    rounded = (
        grid.stored(torch.float16, solvers.grid).values(grid.codes(values))
        for values, grid in results
    )
    return dict(zip(formats, rounded, strict=True))


def fitting_formats(formats: Sequence[Format], columns: int) -> list[Format]:
    """Filter for the formats, except dense, that fit a layer with `columns` inputs."""
    return [fmt for fmt in formats if fmt != Format() and fmt.fits(columns)]


@dataclass
class SensitivityWalk(BlockWalk):
    """Pass over the blocks of the dense model that profiles every layer.

    Attributes:
        model: dense model.
        calibration: token ids [segments, L].
        dtype: dtype of the forward passes.
        formats: candidate formats of the layers.
        solvers: methods that make the candidates.
        checkpoints: checkpoints of the run.
        reporter: receiver of progress and log lines.
        columns: formats of the recorded figures, including `formats`.
        dense: held-out windows in the dense model, with gradients.
        measured: formats whose loss is measured.
        meter: measurement of the loss; None if `measured` is empty.
        record: called with each layer and its figures [figures, formats].
        stream: hidden states and arguments of the forward passes.
    """

    model: PreTrainedModel
    calibration: Tensor
    dtype: torch.dtype
    formats: Sequence[Format]
    solvers: Solvers
    checkpoints: Checkpoints
    reporter: Reporter
    columns: Sequence[Format]
    dense: DenseTrace
    measured: frozenset[Format]
    meter: SensitivityMeter | None
    record: Record
    stream: BlockStream = field(init=False)

    def run(self) -> None:
        """Profile every block that is not stored yet."""
        self.walk(len(decoder_blocks(self.model)))

    def is_stored(self, block: int) -> bool:
        return self.checkpoints.find(block_name(block)) is not None

    def open(self) -> None:
        batch = balanced_batch_size(self.model, len(self.calibration), BATCH)
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
        traces = trace_layers(self.dense, block, linears, self.reporter)
        for module, linear in linears.items():
            stop_if_asked(self.reporter)
            self._profile(linear, inputs[module], traces[module])
        with self.checkpoints.write(block_name(block)) as draft:
            (draft / "done").touch()
        stream.advance(outputs)

    def report(self, block: int, solved: bool) -> None:
        blocks = len(decoder_blocks(self.model))
        self.reporter.progress(block + 1, blocks, at_block(block, blocks, "Measuring layers"))

    def _profile(self, linear: LinearWeight, inputs: InputStatistics, trace: LayerTrace) -> None:
        W, figures = linear.read(), np.full((len(FIGURES), len(self.columns)), np.nan, np.float32)
        measured_weights: dict[int, Tensor] = {}  # column -> weights
        energy, _ = trace.cost(W)
        formats = fitting_formats(self.formats, linear.columns)
        weights = candidates(W, inputs, formats, self.solvers, linear.name, self.reporter.log)
        for fmt, V in weights.items():
            column = self.columns.index(fmt)
            error, loss = trace.cost(V - W)
            figures[:2, column] = error / energy if energy > 0 else 0.0, loss
            if fmt in self.measured:
                measured_weights[column] = V
        if self.meter and measured_weights:
            changes = [{linear.module: V} for V in measured_weights.values()]
            costs = self.meter.measure(linear.block, changes)
            for column, cost in zip(measured_weights, costs, strict=True):
                figures[2:, column] = cost.kl, cost.loss
        self.record(linear, figures)


def profile_embedding(
    model: PreTrainedModel,
    shape: LinearShape,
    formats: Sequence[Format],
    tried: Sequence[Format],
    meter: SensitivityMeter,
) -> Figures:
    """Measure the figures of the token embedding, or of an untied head, rounded as in a run.

    Args:
        model: dense model.
        shape: embedding or head.
        formats: formats of the figures.
        tried: formats to measure.
        meter: measurement of the loss.

    Returns:
        [figures, formats].
    """
    figures = np.full((len(FIGURES), len(formats)), np.nan, np.float32)
    parameter = model.get_submodule(shape.name).get_parameter("weight")
    W = parameter.detach()
    for fmt in fitting_formats(tried, shape.columns):
        V = rounded_embedding(W, fmt)
        with swap_weights({parameter: V}):
            cost = meter.measure_model()
        error = ((V - W.float()).square().sum() / W.float().square().sum()).item()
        figures[:, formats.index(fmt)] = error, np.nan, cost.kl, cost.loss
    return figures


def rounded_embedding(W: Tensor, fmt: Format) -> Tensor:
    """Round an embedding `W` [vocabulary, hidden] to a format as in a run; float32."""
    if fmt.width is None:
        return W.float()
    bits, group = fmt.width.bits, fmt.width.group
    settings = QuantSettings(bits, group, "symmetric", embedding_search(bits))
    return quantize_embedding(W, settings, torch.float16).dense()


def block_name(block: int) -> str:
    return f"block-{block:03d}-heldout"


def candidate_batch(dense: DenseTrace) -> int:
    """Number of candidates per batch, 1 to 8, that limits their logits to 256 MiB."""
    vocabulary = dense.model.config.get_text_config().vocab_size
    logits_bytes = vocabulary * dense.ids.shape[1] * torch.finfo(torch.float32).bits // 8
    return max(1, min(8, 2**28 // logits_bytes))
