"""What every stage changes: the relative error tr(D H D^T) / tr(W H W^T) of each layer, on the
inputs of the dense model for all stages, and the statistics of its weights. A few thousand tokens
tell the error: in SmolLM2-135M at 3 bits, 4,096 give the mean over its layers within 1 % of what
32,768 give, and single layers within 3 % (standard deviation)."""

from concurrent.futures import Executor, Future
from statistics import fmean

import torch
from torch import Tensor

from backend.calibration.second_moments import DenseReference, InputStatistics, StatisticsLevel
from backend.metric_key import MetricKey
from backend.models.blocks import LinearWeight
from backend.models.families.stored import EXPERT
from backend.models.threads import beside
from backend.quantization.config import AUDIT_TOKENS, DLQATStage
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
    workers = torch.get_num_threads()  # as most of the time is theirs
    statistics = beside(run.model.device, largest, reporter.log, workers)
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
