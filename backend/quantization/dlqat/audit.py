"""What every stage changes: the relative error tr(D H D^T) / tr(W H W^T) of each layer, on the
inputs of the dense model for all stages, and the statistics of its weights."""

from concurrent.futures import Executor, Future
from functools import partial
from statistics import fmean

from torch import Tensor

from backend.calibration.second_moments import DenseReference, InputStatistics, StatisticsLevel
from backend.calibration.threads import beside
from backend.metric_key import MetricKey
from backend.models.blocks import LinearWeight
from backend.quantization.config import DLQATStage
from backend.quantization.dlqat.passes import RunPass
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.dlqat.snapshots import code_usage
from backend.reporter import Reporter
from backend.statistics.names import RELATIVE_ERROR
from backend.statistics.reference import ReferenceTensor, TensorMeasurement
from backend.training.stage_store import block_name

AUDIT = "audit"


def audit(run: DLQATRun, reporter: Reporter) -> dict[str, float]:
    """Report the statistics of every tensor at every stage; stage -> mean relative output error."""
    linears = [x for block in range(run.blocks) for x in run.of_block(block).values()]
    largest = max((x.shape[0] * x.columns for x in linears), default=0)
    with beside(run.model.device, largest, reporter.log) as statistics:
        AuditPass(run, statistics, reporter).walk(run.blocks)
    errors = [run.store.facts(block_name(AUDIT, b))["errors"] for b in range(run.blocks)]
    return {s: fmean([e for by_stage in errors for e in by_stage[s]]) for s in run.plan.stages[1:]}


class AuditPass(RunPass):
    """Measures all stages of each block on the inputs of the dense model."""

    def __init__(self, run: DLQATRun, statistics: Executor, reporter: Reporter) -> None:
        super().__init__(run, AUDIT, "Statistics", reporter)
        self._statistics = statistics

    def solve(self, block: int) -> None:
        run = self.run
        linears = run.of_block(block)
        inputs, hidden = self.collect_inputs(block, StatisticsLevel.GRAM, linears)
        self.stream.advance(hidden)
        errors: dict[str, list[float]] = {stage: [] for stage in run.plan.stages[1:]}
        for linear in self.layers(block, linears):
            for stage, error in self._measure(linear, inputs[linear.module]).items():
                errors[stage].append(error)
        for stage, values in errors.items():
            if values:
                key = MetricKey("error", stage, axis="block")
                self.reporter.metric(key, fmean(values), block)
        run.store.save(block_name(AUDIT, block), {}, errors=errors)

    def _measure(self, linear: LinearWeight, inputs: InputStatistics) -> dict[str, float]:
        """Report one tensor at every stage; return stage -> relative output error. While a stage is
        measured, the next one is made."""
        run, dense = self.run, linear.read()
        reference, target = ReferenceTensor(dense), DenseReference(dense, inputs)
        names = {"tensor": f"{linear.name}.weight", "block": linear.block, "module": linear.module}
        errors: dict[str, float] = {}
        measured: list[Future[TensorMeasurement]] = []
        energy: Tensor | None = inputs.energy
        for stage in run.plan.stages:
            W, more = dense, dict[str, float]()
            if stage != DLQATStage.DENSE:
                W = run.weight(stage, linear)
                errors[stage] = target.relative_error(W)
                more[RELATIVE_ERROR] = errors[stage]
            if stage not in (DLQATStage.DENSE, DLQATStage.LORA):
                usage = code_usage(run.store.quantized(stage, linear.name))
                more |= {"code_entropy": _entropy(usage), "codes_used": float((usage > 0).sum())}
            measure = partial(reference.measure, W, stage=stage, more=more, energy=energy)
            measured.append(self._statistics.submit(measure, **names))
            energy = None  # the same at all stages
        for waits in measured:
            waits.result().report(self.reporter)
        return errors


def _entropy(counts: Tensor) -> float:
    """Entropy of the codes in bits, from the count of each."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
