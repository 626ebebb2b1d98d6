"""Passes over the decoder blocks with the calibration segments, one block at a time.

EnergyPass       dense model: mean square of the inputs of every linear
QuantizerPass    the model whose earlier blocks are already quantized
BlockTraining    the model whose earlier blocks are already trained
AuditPass        dense model: what every stage changes

Post-training quantizers work block by block. H = Gram matrix of the inputs in the model whose
earlier blocks are already quantized; a block is quantized on it, and its quantized outputs are the
next block's inputs. Within a block, layers see the inputs of the dense one, or, where the quantizer
is sequential, what the quantized layers before them give. Layers may be rounded in another basis
(`backend.quantization.bases`)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from backend.calibration.second_moments import InputStatistics, StatisticsLevel, collect_inputs
from backend.linalg.gram import search_damping
from backend.models.block_forward import HiddenStates, even_batch, open_stream, run_block
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
DAMPING = 0.01  # first tried; relative to the mean energy of the inputs
Starts = dict[str, Start]


class RunPass(BlockWalk):
    """A pass over the decoder blocks with the calibration segments; `name`: of its checkpoints."""

    batch = CALIBRATION_BATCH  # segments

    def __init__(self, run: DLQATRun, name: str, label: str, reporter: Reporter) -> None:
        self.run, self.name, self.label, self.reporter = run, name, label, reporter
        self.calibration = run.calibration

    def is_stored(self, block: int) -> bool:
        return self.run.store.holds(block_name(self.name, block))

    def open(self) -> None:
        run = self.run
        batch = even_batch(run.model, len(self.calibration), self.batch)
        self.stream = open_stream(run.model, self.calibration, batch, run.dtype)

    def replay(self, block: int) -> None:
        self.stream.advance(self.forward(block, self.stream.hidden))

    def report(self, block: int, solved: bool) -> None:
        doing = self._doing(block) if solved else REPLAY
        self.reporter.progress(block + 1, self.run.blocks, doing)

    def forward(self, block: int, hidden: HiddenStates) -> HiddenStates:
        """The outputs of `block`, with its current weights."""
        return run_block(self.run.model, self.stream, block, hidden, self.safe_point)

    def safe_point(self) -> None:
        """Stop here if cancellation was requested."""
        stop_if_asked(self.reporter)

    def collect_inputs(
        self,
        block: int,
        level: StatisticsLevel,
        linears: Mapping[str, LinearWeight],
        whole: bool = True,
    ) -> tuple[dict[str, InputStatistics], HiddenStates]:
        """Run `block`; input statistics of some linears by module, and its outputs, if it is run to
        its end (`whole`)."""
        stream, model = self.stream, self.run.model
        return collect_inputs(
            model, stream, block, stream.hidden, linears, level, self.safe_point, whole
        )

    def layers(self, block: int, linears: Mapping[str, LinearWeight]) -> Iterator[LinearWeight]:
        """Some of the quantized linears of `block`; report progress and check for
        cancellation."""
        whole = [*self.run.of_block(block)]
        for linear in linears.values():
            done = whole.index(linear.module) / len(whole)
            self.reporter.progress(block + done, self.run.blocks, self._doing(block))
            stop_if_asked(self.reporter)
            yield linear

    def _doing(self, block: int) -> str:
        return at_block(block, self.run.blocks, self.label)


class EnergyPass(RunPass):
    """Stores the mean square of every input [in] of the dense model, by module."""

    def solve(self, block: int) -> None:
        linears = self.run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.ENERGY, linears)
        self.stream.advance(hidden)
        energies = {module: x.energy.clone() for module, x in inputs.items()}
        self.run.store.save(block_name(ENERGY, block), energies)


def quantize_stage(run: DLQATRun, stage: str, reporter: Reporter) -> None:
    """Make `stage` with its post-training quantizer and store it."""
    merged = stage == DLQATStage.LORA_GPTQ
    method = "gptq" if merged else stage
    if QUANTIZERS[method].needs == "nothing":
        run.store.save_stage(stage, _rounded(run, method, reporter))
    else:
        weight = partial(_merged_lora, run) if merged else LinearWeight.read
        QuantizerPass(run, stage, method, weight, reporter).walk(run.blocks)
        run.save_rounded(stage)


class QuantizerPass(RunPass):
    """Quantizes each block on the inputs that the blocks quantized before produce.

    Args:
        name: of the checkpoints; method: of the quantizer.
        weight: linear -> the weight [out, in] to quantize.
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

    def solve(self, block: int) -> None:
        run, left, starts = self.run, self.run.of_block(block), Starts()
        weights = {module: self.weight(linear) for module, linear in left.items()}
        names = {module: linear.name for module, linear in left.items()}
        level = StatisticsLevel[self.quantizer.needs.upper()]
        while left:
            with run.with_weights({names[m]: W for m, W in weights.items()}):
                inputs, _ = self.collect_inputs(block, level, left, whole=False)
            step = _next(left, inputs) if self.quantizer.sequential else left
            starts |= self._quantize(block, step, weights, inputs)
            weights |= {module: _rounded_start(starts[module]) for module in step}
            left = {module: x for module, x in left.items() if module not in step}
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
        """The starts of some layers of a block, by module."""
        run, starts, whole = self.run, Starts(), decoder_blocks(self.run.model)[block]
        of_step = {module: weights[module] for module in step}
        settings = run.settings(step)
        bases = self.quantizer.bases(BlockLayers(whole, of_step, inputs, settings))
        seen = InputsInBasis()

        def is_alike(one: str, other: str) -> bool:
            parts = ((part[one], part[other]) for part in (inputs, bases))
            return all(a is b for a, b in parts) and settings[one] == settings[other]

        for linear in self.layers(block, step):
            name, basis = linear.module, bases[linear.module]
            if name in starts:
                continue
            together = self.quantizer.by_rows and basis is PLAIN
            alike = [each for each in step if is_alike(name, each)] if together else [name]
            W = torch.cat([basis.into(weights[each]) for each in alike])
            quantize = partial(
                self.quantizer.quantize, W, seen.of(inputs[name], basis), settings[name]
            )
            V, grid = search_damping(quantize, DAMPING, self.reporter.log, linear.name, FAILURE)
            rows = [len(weights[each]) for each in alike]
            parts = (V.split(rows), grid.scale.split(rows), grid.zero.split(rows))
            for each, W, scale, zero in zip(alike, *parts, strict=True):
                starts[each] = (W, QuantGrid(grid.bits, scale, zero), basis)
        return starts

    def replay(self, block: int) -> None:
        run, linears = self.run, self.run.of_block(block)
        starts = {x.name: run.store.start(self.name, x) for x in linears.values()}
        self._advance(block, {name: _rounded_start(start) for name, start in starts.items()})

    def _advance(self, block: int, rounded: Mapping[str, Tensor]) -> None:
        """Move the hidden states past `block`, given its `rounded` weights by full name."""
        with self.run.with_weights(rounded):
            super().replay(block)


class InputsInBasis:
    """Input statistics in other bases; layers that share inputs and basis share one object, and
    with it the factors of H."""

    def __init__(self) -> None:
        self._found = dict[tuple[int, int, int], InputStatistics]()

    def of(self, inputs: InputStatistics, basis: Basis) -> InputStatistics:
        """`inputs` in `basis`."""
        if basis.scale is None and not basis.inputs:
            return inputs
        scale = 0 if basis.scale is None else basis.scale.data_ptr()
        key = (id(inputs), scale, basis.inputs)
        if key not in self._found:
            H = basis.gram(inputs.gram)
            self._found[key] = InputStatistics(inputs.tokens, H.diagonal(), H, dtype=inputs.dtype)
        return self._found[key]


def _rounded_start(start: Start) -> Tensor:
    """The weights [out, in] that a start is rounded to."""
    W, grid, basis = start
    return basis.back(grid.nearest(W))


def _next(
    left: Mapping[str, LinearWeight], inputs: Mapping[str, InputStatistics]
) -> dict[str, LinearWeight]:
    """The layers that are quantized next: those with the inputs of the first, and the same layers
    of other experts."""
    first = inputs[next(iter(left))]
    roles = {_role(module) for module in left if inputs[module] is first}
    return {module: linear for module, linear in left.items() if _role(module) in roles}


def _role(module: str) -> str:
    """The name of a layer without the number of its expert."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _merged_lora(run: DLQATRun, linear: LinearWeight) -> Tensor:
    """The weight [out, in] of the LoRA control."""
    W = run.weight(DLQATStage.LORA, linear)
    return W.mul_(linear.read() != 0) if run.plan.settings(linear.name).keep_zeros else W


def _rounded(run: DLQATRun, method: str, reporter: Reporter) -> dict[str, QuantizedWeight]:
    """Full name -> layer, by a quantizer that needs no inputs."""
    layers, quantizer = dict[str, QuantizedWeight](), QUANTIZERS[method]
    for index, block in enumerate(decoder_blocks(run.model)):
        linears = run.of_block(index)
        weights = {module: linear.read() for module, linear in linears.items()}
        settings = run.settings(linears)
        bases = quantizer.bases(BlockLayers(block, weights, {}, settings))
        for module, linear in linears.items():
            stop_if_asked(reporter)
            reporter.progress(len(layers), len(run.linears), "Rounding")
            W, basis = bases[module].into(weights[module]), bases[module]
            found = quantizer.quantize(W, InputStatistics(), settings[module], DAMPING)
            layers[linear.name] = run.quantize(linear.name, (*found, basis))
    return layers
