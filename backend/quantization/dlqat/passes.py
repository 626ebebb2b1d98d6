"""Passes over the decoder blocks with the calibration segments, one block at a time.

EnergyPass       dense model: mean square of the inputs of every linear
QuantizerPass    model whose earlier blocks are already quantized
BlockTraining    model whose earlier blocks are already trained
AuditPass        dense model: errors and statistics of every stage

Post-training quantizers work block by block. H is the Gram matrix of the inputs in the model whose
earlier blocks are already quantized. A block is quantized with H, and its quantized outputs are the
inputs of the next block. Within a block, layers see the inputs from the dense layers, or, if the
quantizer is sequential, from the quantized layers before them. Layers may be rounded in another
basis (`backend.quantization.bases`)."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel, collect_inputs
from backend.linalg.gram import search_damping
from backend.models.block_forward import HiddenStates, balanced_batch_size, open_stream, run_block
from backend.models.block_offload import resident
from backend.models.blocks import LinearWeight, decoder_blocks
from backend.quantization.bases import PLAIN, Basis
from backend.quantization.config import CALIBRATION_BATCH, STAGE_LABELS, DLQATStage
from backend.quantization.dlqat.run import DLQATRun, Start
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.registry import QUANTIZERS, BlockLayers
from backend.reporter import REPLAY, Reporter, at_block, stop_if_asked
from backend.training.stage_store import BlockWalk, block_name

ENERGY = "energy"
FAILURE = (
    "quantized",
    "Use more calibration text, or start from the rounded weights without GPTQ.",
)
DAMPING = 0.01  # initial damping, relative to the mean energy of the inputs
Starts = dict[str, Start]


class RunPass(BlockWalk):
    """A pass over the decoder blocks with the calibration segments. `name` is the prefix of its
    checkpoints."""

    batch = CALIBRATION_BATCH  # segments

    def __init__(self, run: DLQATRun, name: str, label: str, reporter: Reporter) -> None:
        self.run, self.name, self.label, self.reporter = run, name, label, reporter
        self.calibration = run.calibration

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(block_name(self.name, block))

    def open(self) -> None:
        run = self.run
        batch = balanced_batch_size(run.model, len(self.calibration), self.batch)
        self.stream = open_stream(run.model, self.calibration, batch, run.dtype)

    def solve(self, block: int) -> None:
        with resident(self.run.model, block):
            self.solve_block(block)

    @abstractmethod
    def solve_block(self, block: int) -> None:
        """See `solve`; the block is in memory."""

    def replay(self, block: int) -> None:
        self.stream.advance(self.forward(block, self.stream.hidden))

    def report(self, block: int, solved: bool) -> None:
        activity = self._activity(block) if solved else REPLAY
        self.reporter.progress(block + 1, self.run.blocks, activity)

    def forward(self, block: int, hidden: HiddenStates) -> HiddenStates:
        """Return the outputs of `block` with its current weights."""
        return run_block(self.run.model, self.stream, block, hidden, self.safe_point)

    def safe_point(self) -> None:
        """Raise `CancelledError` if cancellation was requested."""
        stop_if_asked(self.reporter)

    def collect_inputs(
        self,
        block: int,
        level: StatisticsLevel,
        linears: Mapping[str, LinearWeight],
        to_end: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run `block`. Return the input statistics of `linears` by module, and the outputs of the
        block if it runs `to_end`."""
        stream, model = self.stream, self.run.model
        return collect_inputs(
            model, stream, block, stream.hidden, linears, level, self.safe_point, to_end
        )

    def layers(self, block: int, linears: Mapping[str, LinearWeight]) -> Iterator[LinearWeight]:
        """Yield `linears` of `block`, report progress and check for cancellation."""
        modules = [*self.run.of_block(block)]
        for linear in linears.values():
            share = modules.index(linear.module) / len(modules)
            self.reporter.progress(block + share, self.run.blocks, self._activity(block))
            stop_if_asked(self.reporter)
            yield linear

    def _activity(self, block: int) -> str:
        return at_block(block, self.run.blocks, self.label)


class EnergyPass(RunPass):
    """Stores the mean square of every input [in] of the dense model, by module."""

    def solve_block(self, block: int) -> None:
        linears = self.run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.ENERGY, linears)
        self.stream.advance(hidden)
        energies = {module: x.energy.clone() for module, x in inputs.items()}
        self.run.store.save(block_name(ENERGY, block), energies)


def quantize_stage(run: DLQATRun, stage: str, reporter: Reporter) -> None:
    """Run the post-training quantizer of `stage` and store the result."""
    merged = stage == DLQATStage.LORA_GPTQ
    method = "gptq" if merged else stage
    if QUANTIZERS[method].needs == "nothing":
        run.store.save_stage(stage, _rounded(run, method, reporter))
    else:
        weight = partial(_merged_lora, run) if merged else LinearWeight.read
        QuantizerPass(run, stage, method, weight, reporter).walk(run.blocks)
        run.save_rounded(stage)


class QuantizerPass(RunPass):
    """Quantizes each block on the outputs of the quantized blocks before it.

    Args:
        name: prefix of the checkpoints.
        method: name of the quantizer.
        weight: returns the weight [out, in] of a linear to quantize.
    """

    def __init__(
        self,
        run: DLQATRun,
        name: str,
        method: str,
        weight: Callable[[LinearWeight], Tensor],
        reporter: Reporter,
    ) -> None:
        super().__init__(run, name, STAGE_LABELS[method], reporter)
        self.quantizer, self.weight = QUANTIZERS[method], weight

    def solve_block(self, block: int) -> None:
        run, remaining, starts = self.run, self.run.of_block(block), Starts()
        weights = {module: self.weight(linear) for module, linear in remaining.items()}
        names = {module: linear.name for module, linear in remaining.items()}
        level = StatisticsLevel[self.quantizer.needs.upper()]
        while remaining:
            with run.with_weights({names[m]: W for m, W in weights.items()}):
                inputs, _ = self.collect_inputs(block, level, remaining, to_end=False)
            step = _next_layers(remaining, inputs) if self.quantizer.sequential else remaining
            starts |= self._quantize(block, step, weights, inputs)
            weights |= {module: _rounded_start(starts[module]) for module in step}
            remaining = {module: x for module, x in remaining.items() if module not in step}
        run.store.save_starts(self.name, block, starts)
        if block < self.last:
            self._advance(block, {names[module]: W for module, W in weights.items()})

    def _quantize(
        self,
        block: int,
        step: Mapping[str, LinearWeight],
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, InputStatistics],
    ) -> Starts:
        """Quantize the layers of `step`. Layers with the same inputs, basis and settings are
        quantized together if the quantizer works by rows."""
        run, starts, modules = self.run, Starts(), decoder_blocks(self.run.model)[block]
        step_weights = {module: weights[module] for module in step}
        settings = run.settings(step)
        bases = self.quantizer.bases(BlockLayers(modules, step_weights, inputs, settings))
        statistics = InputsInBasis()

        def can_join(a: str, b: str) -> bool:
            same_inputs = inputs[a] is inputs[b] and bases[a] is bases[b]
            return same_inputs and settings[a] == settings[b]

        for linear in self.layers(block, step):
            name, basis = linear.module, bases[linear.module]
            if name in starts:
                continue
            joins = self.quantizer.by_rows and basis is PLAIN
            batch = [module for module in step if can_join(name, module)] if joins else [name]
            W = torch.cat([basis.into(weights[module]) for module in batch])
            layer_inputs = statistics.of(inputs[name], basis)
            quantize = partial(self.quantizer.quantize, W, layer_inputs, settings[name])
            V, grid = search_damping(quantize, DAMPING, self.reporter.log, linear.name, FAILURE)
            rows = [len(weights[module]) for module in batch]
            parts = (V.split(rows), grid.scale.split(rows), grid.zero.split(rows))
            for module, W, scale, zero in zip(batch, *parts, strict=True):
                starts[module] = (W, QuantGrid(grid.bits, scale, zero), basis)
        return starts

    def replay(self, block: int) -> None:
        run, linears = self.run, self.run.of_block(block)
        starts = {x.name: run.store.start(self.name, x) for x in linears.values()}
        self._advance(block, {name: _rounded_start(start) for name, start in starts.items()})

    def _advance(self, block: int, rounded: Mapping[str, Tensor]) -> None:
        """Move the hidden states past `block` with its `rounded` weights, by full name."""
        with resident(self.run.model, block), self.run.with_weights(rounded):
            super().replay(block)


class InputsInBasis:
    """Input statistics in other bases. Layers with the same inputs and basis share one object, and
    thus the factors of H."""

    def __init__(self) -> None:
        self._statistics = dict[tuple[int, int, int], InputStatistics]()

    def of(self, inputs: InputStatistics, basis: Basis) -> InputStatistics:
        """Return `inputs` in `basis`."""
        if basis.scale is None and not basis.inputs:
            return inputs
        scale = 0 if basis.scale is None else basis.scale.data_ptr()
        key = (id(inputs), scale, basis.inputs)
        if key not in self._statistics:
            H = basis.gram(inputs.gram)
            self._statistics[key] = InputStatistics(
                inputs.tokens, H.diagonal(), H, dtype=inputs.dtype
            )
        return self._statistics[key]


def _rounded_start(start: Start) -> Tensor:
    """Return the rounded weights [out, in] of a start."""
    W, grid, basis = start
    return basis.back(grid.nearest(W))


def _next_layers(
    remaining: Mapping[str, LinearWeight], inputs: Mapping[str, InputStatistics]
) -> dict[str, LinearWeight]:
    """Return the layers to quantize next: those with the inputs of the first layer, and the same
    layers of other experts."""
    first = inputs[next(iter(remaining))]
    roles = {_role(module) for module in remaining if inputs[module] is first}
    return {module: linear for module, linear in remaining.items() if _role(module) in roles}


def _role(module: str) -> str:
    """Return the name of a layer without the number of its expert."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _merged_lora(run: DLQATRun, linear: LinearWeight) -> Tensor:
    """Return the weight [out, in] of a linear of the LoRA control."""
    W = run.weight(DLQATStage.LORA, linear)
    return W.mul_(linear.read() != 0) if run.plan.settings(linear.name).keep_zeros else W


def _rounded(
    run: DLQATRun, method: str, reporter: Reporter
) -> Iterator[dict[str, QuantizedWeight]]:
    """Quantize the layers of each block with a quantizer that needs no inputs. Yield them by full
    name."""
    quantizer, done = QUANTIZERS[method], 0
    for index, block in enumerate(decoder_blocks(run.model)):
        linears, layers = run.of_block(index), dict[str, QuantizedWeight]()
        settings = run.settings(linears)
        with resident(run.model, index):
            weights = {module: linear.read() for module, linear in linears.items()}
            bases = quantizer.bases(BlockLayers(block, weights, {}, settings))
        for module, linear in linears.items():
            stop_if_asked(reporter)
            reporter.progress(done + len(layers), len(run.linears), "Rounding")
            W, basis = bases[module].into(weights[module]), bases[module]
            V, grid = quantizer.quantize(W, InputStatistics(), settings[module], DAMPING)
            layers[linear.name] = run.quantize(linear.name, (V, grid, basis))
        done += len(layers)
        yield layers
