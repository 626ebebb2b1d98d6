"""Statistics of a DL-QAT run: curves and profiles during training, and an audit of every stage.

Curves are reported every few steps:

changed            share of codes that differ from the initial ones
m, p05 ..          quantiles of the group magnitudes over all layers

Profiles of a tensor are reported at a few snapshots:

magnitude          m [out, groups]
codes              count of each code [2^n]
scale              m s [out, groups], at the first and the last snapshot
error              root mean square of What - W_dense [out, groups], at the same snapshots
clipped            share of weights outside the range of the grid [out, groups], the same
worst              groups with the largest errors [count, 3 + 2 size], at the last snapshot:
                   row, group, z, W_dense .., What ..

The audit measures the relative error tr(D H D^T) / tr(W H W^T) of each layer, on the inputs of the
dense model for all stages, and the statistics of its weights. A few thousand tokens suffice: in
SmolLM2-135M at 3 bits, 4,096 tokens give the mean error over all layers within 1 % of 32,768
tokens, and single layers within 3 % (standard deviation)."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from backend.calibration.second_moments import DenseReference, InputStatistics, StatisticsLevel
from backend.metric_key import MetricKey
from backend.models.block_offload import resident
from backend.models.blocks import LinearWeight, swap_modules
from backend.models.families.stored import EXPERT
from backend.models.threads import parallel_map, statistics_executor
from backend.quantization.config import AUDIT_TOKENS, DLQATStage
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.passes import RunPass
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.grid import QuantizedWeight
from backend.reporter import Reporter
from backend.statistics.distribution import ascending, quantiles
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.statistics.tensors import FAN, RELATIVE_ERROR, TensorProfile
from backend.training.stage_store import block_name

SNAPSHOTS = 5  # profiles of all groups during a training
CURVE_POINTS, MIN_STEPS_BETWEEN = 10, 2  # points of curves that take a pass over all weights
WORST_GROUPS = 16  # groups recorded weight by weight
MAX_GROUP_SIZE = 1024  # largest groups recorded weight by weight
M_STEPS = 2**16  # magnitudes are recorded in steps of 1 / M_STEPS
AUDIT = "audit"


def code_usage(layer: QuantizedWeight) -> Tensor:
    """Return the count of each code, int64 [2^n]."""
    return torch.bincount(layer.codes.flatten(), minlength=layer.grid.top + 1)


class TrainingSnapshots:
    """Reports curves and profiles of the layers, by full name, during a training."""

    def __init__(
        self,
        stage: str,
        layers: Mapping[str, DLQATLinear],
        run: DLQATRun,
        reporter: Reporter,
    ) -> None:
        self._stage, self._layers, self._run = stage, layers, run
        self._reporter, self._steps = reporter, run.config.steps
        steps = self._steps
        self._snapshot_steps = {round(n * steps / (SNAPSHOTS - 1)) for n in range(SNAPSHOTS)}
        self._curve_interval = max(MIN_STEPS_BETWEEN, steps // CURVE_POINTS)

    def __call__(self, step: int) -> None:
        """Report after `step` steps; 0 for before training."""
        at_end = step in (0, self._steps)
        has_curve = step % self._curve_interval == 0 or at_end
        has_profiles = step in self._snapshot_steps
        if not has_curve and not has_profiles:
            return
        changed, measure = 0, partial(self._measure_layer, step, has_profiles)
        for index, names in groupby(self._layers, lambda name: self._run.linears[name].block):
            # large layers first, which balances the threads
            block = sorted(names, key=lambda name: -self._layers[name].m.numel())
            on_cpu = self._layers[block[0]].m.device.type == "cpu"
            with self._dense_in_memory(index) if has_profiles else nullcontext():
                results = parallel_map(measure, block) if on_cpu else [*map(measure, block)]
            for count, profiles in results:
                changed += count
                for profile in profiles:
                    self._reporter.profile(profile)
        if not has_curve:
            return
        layers = self._layers.values()
        weights = sum(rows * columns for rows, columns in (layer.shape for layer in layers))
        self._reporter.metric(MetricKey("changed", self._stage), changed / weights, step)
        m = torch.cat([layer.m.detach().flatten() for layer in layers])
        for name, value in zip(FAN, quantiles(ascending(m), tuple(FAN.values())), strict=True):
            self._reporter.metric(MetricKey("m", self._stage, name), value, step)

    @contextmanager
    def _dense_in_memory(self, block: int) -> Iterator[None]:
        """Keep the dense weights of a block in memory, which training may not need."""
        run = self._run
        bases = {x.name: self._layers[x.name].base for x in run.of_block(block).values()}
        with swap_modules(run.model, bases), resident(run.model, block):
            yield

    def _measure_layer(
        self, step: int, has_profiles: bool, name: str
    ) -> tuple[int, list[TensorProfile]]:
        """Return the number of changed codes of a layer, and its profiles if `has_profiles`."""
        layer, linear = self._layers[name], self._run.linears[name]
        # errors are not needed without profiles
        reference = layer.dense if has_profiles else layer.initial
        figures_of = partial(layer.figures, reference)
        changed, codes, errors, inside = zip(*map(figures_of, layer.parts()), strict=True)
        if not has_profiles:
            return sum(changed), []
        size, m = layer.shape[1] // layer.grid.groups, layer.m.detach()
        error = torch.cat(errors).div_(size).sqrt_()  # root mean square of each group
        figures = {
            "magnitude": m.mul(M_STEPS).round_().div_(M_STEPS),
            "codes": torch.stack(codes).sum(0),
        }
        if step in (0, self._steps):
            figures["scale"] = _compressible(m * layer.grid.scale)
            figures["error"] = _compressible(error)
            figures["clipped"] = _compressible(1 - torch.cat(inside).div_(size))
        if step == self._steps and size <= MAX_GROUP_SIZE:
            figures["worst"] = _compressible(_worst_groups(layer, error))
        tensor = f"{name}.weight", linear.block, linear.module, self._stage
        profiles = [
            TensorProfile(*tensor, figure, values.float().cpu().contiguous().numpy(), step)
            for figure, values in figures.items()
        ]
        return sum(changed), profiles


def _compressible(values: Tensor) -> Tensor:
    """Round `values` to the mantissa of bfloat16 plus four bits, which compresses well."""
    mantissa, exponent = torch.frexp(values.float())
    return torch.ldexp(mantissa.mul_(2**12).round_().div_(2**12), exponent)


def _worst_groups(layer: DLQATLinear, error: Tensor) -> Tensor:
    """Return the groups with the largest errors, worst first: row, group, z, W_dense, What."""
    order = error.flatten().argsort(descending=True, stable=True)[:WORST_GROUPS]
    rows, groups = order // layer.grid.groups, order % layer.grid.groups
    shape = (len(error), layer.grid.groups, -1)
    dense, trained = layer.dense.reshape(shape), layer.effective().view(shape)
    head = torch.stack([rows.float(), groups.float(), layer.grid.zero[rows, groups]], 1)
    return torch.cat([head, dense[rows, groups].float(), trained[rows, groups]], 1)


def audit(run: DLQATRun, reporter: Reporter) -> dict[str, float]:
    """Report the statistics of every tensor at every stage. Return the mean relative output error
    of each stage."""
    linears = [x for block in range(run.blocks) for x in run.of_block(block).values()]
    largest = max((x.shape[0] * x.columns for x in linears), default=0)
    workers = torch.get_num_threads()  # the statistics take most of the time
    statistics = statistics_executor(run.model.device, largest, reporter.log, workers)
    try:
        audit_pass = AuditPass(run, statistics, reporter)
        audit_pass.walk(run.blocks)
        audit_pass.finish()
    finally:
        statistics.shutdown(cancel_futures=True)
    errors = [run.store.facts(block_name(AUDIT, b))["errors"] for b in range(run.blocks)]
    return {s: fmean([e for by_stage in errors for e in by_stage[s]]) for s in run.plan.stages[1:]}


class AuditPass(RunPass):
    """Measures all stages of each block on the inputs of the dense model.

    Statistics run in the background: those of a layer are collected after the next layer is
    submitted, and those of a block after the next forward pass.
    """

    def __init__(self, run: DLQATRun, statistics: Executor, reporter: Reporter) -> None:
        super().__init__(run, AUDIT, "Statistics", reporter)
        if not any(map(EXPERT.fullmatch, run.linears)):  # experts see only a few of the tokens
            self.calibration = run.calibration[: max(1, AUDIT_TOKENS // run.calibration.shape[1])]
        self._statistics = statistics
        self._pending: list[Future[TensorMeasurement]] = []  # measurements of the previous layer
        self._pending_block, self._pending_errors = -1, dict[str, list[float]]()

    def solve_block(self, block: int) -> None:
        run = self.run
        linears = run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.GRAM, linears)
        self.stream.advance(hidden)
        self.finish()
        self._pending_block = block
        self._pending_errors = {stage: [] for stage in run.plan.stages[1:]}
        for linear in self.layers(block, linears):
            self._measure(linear, inputs[linear.module])

    def finish(self) -> None:
        """Report and store the pending block."""
        if self._pending_block < 0:
            return
        self._report([])
        for stage, values in self._pending_errors.items():
            if values:
                key = MetricKey("error", stage, axis="block")
                self.reporter.metric(key, fmean(values), self._pending_block)
        self.run.store.save(block_name(AUDIT, self._pending_block), {}, errors=self._pending_errors)
        self._pending_block = -1

    def _report(self, following: list[Future[TensorMeasurement]]) -> None:
        """Report the pending measurements and make `following` the pending ones."""
        for future in self._pending:
            measurement = future.result()
            stage, stats = measurement.snapshot.stage, measurement.snapshot.stats
            if stage != DLQATStage.DENSE:
                self._pending_errors[stage].append(stats[RELATIVE_ERROR])
            measurement.report(self.reporter)
        self._pending = following

    def _measure(self, linear: LinearWeight, inputs: InputStatistics) -> None:
        """Submit the measurements of one tensor at every stage."""
        dense, submit = linear.read(), self._statistics.submit
        target = DenseReference(dense, inputs)
        reference = submit(ReferenceTensor, dense)
        stages = self.run.plan.stages
        self._report([submit(self._measure_stage, x, linear, reference, target) for x in stages])

    def _measure_stage(
        self,
        stage: str,
        linear: LinearWeight,
        reference: Future[ReferenceTensor],
        target: DenseReference,
    ) -> TensorMeasurement:
        W, stats, energy = target.dense, dict[str, float](), None
        if stage == DLQATStage.DENSE:
            energy = target.inputs.energy  # recorded once, because all stages have the same
        else:
            W, usage = self._stage_weight(stage, linear, target.dense)
            stats = {RELATIVE_ERROR: target.relative_error(W), **usage}
        return reference.result().measure(
            W,
            tensor=f"{linear.name}.weight",
            block=linear.block,
            module=linear.module,
            stage=stage,
            more=stats,
            energy=energy,
        )

    def _stage_weight(
        self, stage: str, linear: LinearWeight, dense: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weight [out, in] of `linear` at `stage`, and statistics of its codes if it has
        codes."""
        if stage == DLQATStage.LORA:
            return self.run.merged(linear, dense), {}
        layer = self.run.store.quantized(stage, linear)
        counts = code_usage(layer)
        usage = {"code_entropy": _entropy(counts), "codes_used": float((counts > 0).sum())}
        return self.run.saved(layer), usage


def _entropy(counts: Tensor) -> float:
    """Return the entropy of the codes in bits, given the count of each code."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
