"""Statistics of a DL-QAT run: during training, and an audit of what every stage changes.

During training, curves are reported every few steps, profiles of all groups at a few.

changed            share of codes that differ from the initial ones
m, p05 ..          quantiles of the group magnitudes over all layers

profiles of a tensor: magnitude m and, at the first and the last snapshot, scale m s, error
(root mean square of What - W_dense) and clipped (share of weights outside the range of the grid),
all [out, groups]; codes: count of each code, [2^n]; at the last snapshot also worst: the groups
with the largest errors, weight by weight, [few, 3 + 2 size]: row, group, z, W_dense .., What ..

The audit measures the relative error tr(D H D^T) / tr(W H W^T) of each layer, on the
inputs of the dense model for all stages, and the statistics of its weights. A few thousand tokens
tell the error: in SmolLM2-135M at 3 bits, 4,096 give the mean over its layers within 1 % of what
32,768 give, and single layers within 3 % (standard deviation)."""

from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import partial
from itertools import groupby
from statistics import fmean

import torch
from torch import Tensor

from backend.calibration.second_moments import DenseReference, InputStatistics, StatisticsLevel
from backend.metric_key import MetricKey
from backend.models.blocks import LinearWeight
from backend.models.families.stored import EXPERT
from backend.models.threads import side_by_side, statistics_executor
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

SNAPSHOTS = 5  # of all groups
CURVE_POINTS, STEPS_BETWEEN = 10, 2  # of curves that cost a pass over all weights
WORST_GROUPS = 16  # recorded weight by weight
MAX_GROUP_SIZE = 1024  # of those
M_STEPS = 2**16  # magnitudes are recorded in steps of 1 / M_STEPS
AUDIT = "audit"


def code_usage(layer: QuantizedWeight) -> Tensor:
    """Count of each code: int64 [2^n]."""
    return torch.bincount(layer.codes.flatten(), minlength=layer.grid.top + 1)


class TrainingSnapshots:
    """Report the layers of one training of so many steps, by full name."""

    def __init__(
        self,
        stage: str,
        layers: Mapping[str, DLQATLinear],
        linears: Mapping[str, LinearWeight],
        steps: int,
        reporter: Reporter,
    ) -> None:
        self._stage, self._layers, self._linears = stage, layers, linears
        self._reporter, self._steps = reporter, steps
        self._at = {round(n * steps / (SNAPSHOTS - 1)) for n in range(SNAPSHOTS)}
        self._every = max(STEPS_BETWEEN, steps // CURVE_POINTS)

    def __call__(self, step: int) -> None:
        """Report after `step` steps; 0: before the first."""
        ends = step in (0, self._steps)
        curve = step % self._every == 0 or ends
        if not curve and step not in self._at:
            return
        changed, look = 0, partial(self._look, step, step in self._at)
        for _, names in groupby(self._layers, lambda name: self._linears[name].block):
            block = sorted(names, key=lambda name: -self._layers[name].m.numel())  # evens out
            beside = self._layers[block[0]].m.device.type == "cpu"
            for count, profiles in side_by_side(look, block) if beside else map(look, block):
                changed += count
                for profile in profiles:
                    self._reporter.profile(profile)
        if not curve:
            return
        layers = self._layers.values()
        weights = sum(rows * columns for rows, columns in (layer.shape for layer in layers))
        self._reporter.metric(MetricKey("changed", self._stage), changed / weights, step)
        m = torch.cat([layer.m.detach().flatten() for layer in layers])
        for name, value in zip(FAN, quantiles(ascending(m), tuple(FAN.values())), strict=True):
            self._reporter.metric(MetricKey("m", self._stage, name), value, step)

    def _look(self, step: int, whole: bool, name: str) -> tuple[int, list[TensorProfile]]:
        """The number of codes of a layer that have changed, and, if they are wanted, its
        profiles."""
        layer, linear = self._layers[name], self._linears[name]
        changed, codes, errors, inside = zip(*map(layer.figures, layer.parts()), strict=True)
        if not whole:
            return sum(changed), []
        size, m = layer.shape[1] // layer.grid.groups, layer.m.detach()
        error = torch.cat(errors).div_(size).sqrt_()  # root mean square of each group
        figures = {
            "magnitude": m.mul(M_STEPS).round_().div_(M_STEPS),
            "codes": torch.stack(codes).sum(0),
        }
        if step in (0, self._steps):
            figures["scale"] = _short(m * layer.grid.scale)
            figures["error"] = _short(error)
            figures["clipped"] = _short(1 - torch.cat(inside).div_(size))
        if step == self._steps and size <= MAX_GROUP_SIZE:
            figures["worst"] = _short(_worst(layer, error))
        place = f"{name}.weight", linear.block, linear.module, self._stage
        profiles = [
            TensorProfile(*place, figure, values.float().cpu().contiguous().numpy(), step)
            for figure, values in figures.items()
        ]
        return sum(changed), profiles


def _short(values: Tensor) -> Tensor:
    """`values` with the mantissa of bfloat16 plus four bits, which compresses well."""
    mantissa, exponent = torch.frexp(values.float())
    return torch.ldexp(mantissa.mul_(2**12).round_().div_(2**12), exponent)


def _worst(layer: DLQATLinear, error: Tensor) -> Tensor:
    """The groups with the largest error, the worst first: row, group, z, W_dense, What."""
    order = error.flatten().argsort(descending=True, stable=True)[:WORST_GROUPS]
    rows, groups = order // layer.grid.groups, order % layer.grid.groups
    shape = (len(error), layer.grid.groups, -1)
    dense, moved = layer.dense(slice(None)).reshape(shape), layer.effective().view(shape)
    head = torch.stack([rows.float(), groups.float(), layer.grid.zero[rows, groups]], 1)
    return torch.cat([head, dense[rows, groups].float(), moved[rows, groups]], 1)


def audit(run: DLQATRun, reporter: Reporter) -> dict[str, float]:
    """Report the statistics of every tensor at every stage; stage -> mean relative output error."""
    linears = [x for block in range(run.blocks) for x in run.of_block(block).values()]
    largest = max((x.shape[0] * x.columns for x in linears), default=0)
    workers = torch.get_num_threads()  # as most of the time is theirs
    statistics = statistics_executor(run.model.device, largest, reporter.log, workers)
    try:
        audited = AuditPass(run, statistics, reporter)
        audited.walk(run.blocks)
        audited.finish()
    finally:
        statistics.shutdown(cancel_futures=True)
    errors = [run.store.facts(block_name(AUDIT, b))["errors"] for b in range(run.blocks)]
    return {s: fmean([e for by_stage in errors for e in by_stage[s]]) for s in run.plan.stages[1:]}


class AuditPass(RunPass):
    """Measures all stages of each block on the inputs of the dense model. The statistics of a layer
    are awaited behind the next one, those of a block behind the next pass."""

    def __init__(self, run: DLQATRun, statistics: Executor, reporter: Reporter) -> None:
        super().__init__(run, AUDIT, "Statistics", reporter)
        if not any(map(EXPERT.fullmatch, run.linears)):  # which few tokens reach
            self.calibration = run.calibration[: max(1, AUDIT_TOKENS // run.calibration.shape[1])]
        self._statistics = statistics
        self._measured: list[Future[TensorMeasurement]] = []  # of the layer before
        self._block, self._errors = -1, dict[str, list[float]]()  # that is not stored yet

    def solve(self, block: int) -> None:
        run = self.run
        linears = run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.GRAM, linears)
        self.stream.advance(hidden)
        self.finish()
        self._block, self._errors = block, {stage: [] for stage in run.plan.stages[1:]}
        for linear in self.layers(block, linears):
            self._measure(linear, inputs[linear.module])

    def finish(self) -> None:
        """Report and store the block that is not stored yet."""
        if self._block < 0:
            return
        self._report([])
        for stage, values in self._errors.items():
            if values:
                key = MetricKey("error", stage, axis="block")
                self.reporter.metric(key, fmean(values), self._block)
        self.run.store.save(block_name(AUDIT, self._block), {}, errors=self._errors)
        self._block = -1

    def _report(self, following: list[Future[TensorMeasurement]]) -> None:
        """Report what was measured before `following`."""
        for waits in self._measured:
            measured = waits.result()
            stage, stats = measured.snapshot.stage, measured.snapshot.stats
            if stage != DLQATStage.DENSE:
                self._errors[stage].append(stats[RELATIVE_ERROR])
            measured.report(self.reporter)
        self._measured = following

    def _measure(self, linear: LinearWeight, inputs: InputStatistics) -> None:
        """Begin to measure one tensor at every stage."""
        dense, submit = linear.read(), self._statistics.submit
        target = DenseReference(dense, inputs)
        reference = submit(ReferenceTensor, dense)  # which the next ones wait for
        stages = self.run.plan.stages
        self._report([submit(self._at_stage, x, linear, reference, target) for x in stages])

    def _at_stage(
        self,
        stage: str,
        linear: LinearWeight,
        reference: Future[ReferenceTensor],
        target: DenseReference,
    ) -> TensorMeasurement:
        W, more, energy = target.dense, dict[str, float](), None
        if stage == DLQATStage.DENSE:
            energy = target.inputs.energy  # the same at all stages
        else:
            W, usage = self._stage(stage, linear)
            more = {RELATIVE_ERROR: target.relative_error(W), **usage}
        return reference.result().measure(
            W,
            tensor=f"{linear.name}.weight",
            block=linear.block,
            module=linear.module,
            stage=stage,
            more=more,
            energy=energy,
        )

    def _stage(self, stage: str, linear: LinearWeight) -> tuple[Tensor, dict[str, float]]:
        """The weight [out, in] of `linear` at `stage`, and the use of its codes, where it has
        some."""
        if stage == DLQATStage.LORA:
            return self.run.weight(stage, linear), {}
        layer = self.run.store.quantized(stage, linear.name)
        counts = code_usage(layer)
        used = {"code_entropy": _entropy(counts), "codes_used": float((counts > 0).sum())}
        return self.run.saved(layer), used


def _entropy(counts: Tensor) -> float:
    """Entropy of the codes in bits, from the count of each."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
