"""Walks over the decoder blocks with the calibration text, one block at work at a time.

energies    the dense model's:   mean square of what every linear reads
compensate  GPTQ:                H = Gram of the inputs in the model whose earlier blocks are
                                 quantised already; the block is compensated, rounded, and passed
audit       the dense model's:   relative error tr(D H D^T) / tr(W H W^T) of every stage, on the
                                 same inputs for all of them, and the figures of its weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from torch import Tensor

from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.dlqat.config import DLQATStage
from backend.methods.dlqat.run import DLQATRun
from backend.methods.dlqat.snapshots import code_usage
from backend.methods.dlqat.stage_store import block_name
from backend.methods.linalg import with_damping
from backend.models.blocks import LinearWeight
from backend.quantization.gptq import gptq
from backend.quantization.grid import QuantGrid
from backend.quantization.range_search import search_range
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.statistics.reference import ReferenceTensor

FAILED = (
    "compensated", "Use more calibration text, or start from the rounded weights without GPTQ.",
)  # fmt: skip
ENERGY, AUDIT = "energy", "audit"
Starts = dict[str, tuple[Tensor, QuantGrid]]


def find_energies(run: DLQATRun, reporter: Reporter) -> dict[str, Tensor]:
    """Full name -> mean square of each input [in], in the dense model."""
    if not run.store.holds(ENERGY):
        stream, found = run.open_stream(), dict[str, Tensor]()
        for block in range(run.blocks):
            reporter.progress(block, run.blocks, f"Input energies, block {block + 1}")
            seen, hidden = run.look(stream, block, StatisticsLevel.ENERGY, reporter)
            found |= {run.of_block(block)[m].name: x.energy.clone() for m, x in seen.items()}
            stream.advance(hidden)
        run.store.save(ENERGY, found)
    return run.store.tensors(ENERGY)


def compensate(
    run: DLQATRun, walk: str, weight: Callable[[LinearWeight], Tensor], reporter: Reporter
) -> None:
    """GPTQ of `weight`(linear) [out, in] for every quantised linear; each block a checkpoint.

    A resumed walk runs finished blocks forward with their stored codes, bit for bit as before.
    """
    missing = [b for b in range(run.blocks) if not run.store.holds(block_name(walk, b))]
    if not missing:
        return
    stream = run.open_stream()
    for block in range(missing[-1] + 1):
        linears = run.of_block(block)
        doing = f"GPTQ, block {block + 1} of {run.blocks}" if block in missing else REPLAY
        if block in missing:
            weights = {module: weight(linear) for module, linear in linears.items()}
            with run.with_weights({linears[m].name: W for m, W in weights.items()}):
                seen, _ = run.look(stream, block, StatisticsLevel.GRAM, reporter)
            starts = Starts()
            for n, (module, W) in enumerate(weights.items()):
                reporter.progress(block + n / len(weights), run.blocks, doing)
                stop_if_asked(reporter)
                starts[module] = _compensated(run, linears[module], W, seen[module], reporter)
            run.store.save_starts(walk, block, starts)
        if block < missing[-1]:
            starts = {module: run.store.start(walk, block, module) for module in linears}
            rounded = {linears[m].name: grid.nearest(W) for m, (W, grid) in starts.items()}
            with run.with_weights(rounded):
                stream.advance(run.forward(stream, block, reporter))
        reporter.progress(block + 1, run.blocks, doing)


def _compensated(
    run: DLQATRun, linear: LinearWeight, W: Tensor, inputs: InputStatistics, reporter: Reporter
) -> tuple[Tensor, QuantGrid]:
    """GPTQ of one weight, with more damping where its Hessian asks for it."""
    config = run.config
    size = config.group_size or W.shape[1]

    def find(V: Tensor, columns: slice) -> QuantGrid:
        energy = inputs.energy[columns]
        return search_range(V, config.bits, 0, config.symmetric, config.space, energy)

    def solve(damping: float) -> tuple[Tensor, QuantGrid]:
        return gptq(W, inputs.inverse_root(damping), size, find, config.keep_zeros)

    return with_damping(solve, config.damping, reporter.log, linear.name, FAILED)


def audit(
    run: DLQATRun, stages: Sequence[DLQATStage], reporter: Reporter
) -> dict[DLQATStage, float]:
    """Reports every tensor at every stage; gives the mean relative output error of each."""
    missing = [b for b in range(run.blocks) if not run.store.holds(block_name(AUDIT, b))]
    stream = run.open_stream() if missing else None
    for block in range(run.blocks):
        doing = f"Statistics, block {block + 1} of {run.blocks}"
        if stream and block in missing:
            seen, hidden = run.look(stream, block, StatisticsLevel.GRAM, reporter)
            stream.advance(hidden)
            errors: dict[str, list[float]] = {stage: [] for stage in stages[1:]}
            for n, (module, linear) in enumerate(run.of_block(block).items()):
                reporter.progress(block + n / len(seen), run.blocks, doing)
                stop_if_asked(reporter)
                for stage, error in _measure(run, stages, linear, seen[module], reporter).items():
                    errors[stage].append(error)
            for name, found in errors.items():
                if found:
                    reporter.metric(f"error/{name}", fmean(found), block)
            run.store.save(block_name(AUDIT, block), {}, errors=errors)
        elif stream and block < missing[-1]:
            stream.advance(run.forward(stream, block, reporter))
        reporter.progress(block + 1, run.blocks, doing if block in missing else REPLAY)
    facts = [run.store.facts(block_name(AUDIT, b))["errors"] for b in range(run.blocks)]
    return {s: fmean([e for of_block in facts for e in of_block[s]]) for s in stages[1:]}


def _measure(
    run: DLQATRun,
    stages: Sequence[DLQATStage],
    linear: LinearWeight,
    inputs: InputStatistics,
    reporter: Reporter,
) -> dict[DLQATStage, float]:
    """Reports one tensor at every stage; stage -> relative output error."""
    dense = linear.read()
    reference, target = ReferenceTensor(dense), DenseReference(dense, inputs)
    of = {"tensor": f"{linear.name}.weight", "block": linear.block, "module": linear.module}
    errors: dict[DLQATStage, float] = {}
    for stage in stages:
        W, more = dense, dict[str, float]()
        if stage != DLQATStage.DENSE:
            W = run.weight(stage, linear)
            errors[stage] = target.relative_error(W)
            more["relative_error"] = errors[stage]
        if stage not in (DLQATStage.DENSE, DLQATStage.LORA):
            usage = code_usage(run.store.quantised(stage, linear.name))
            more |= {"code_entropy": _entropy(usage), "codes_used": float((usage > 0).sum())}
        reference.measure(W, stage=stage, more=more, **of).report(reporter)  # type: ignore[arg-type]
    return errors


def _entropy(counts: Tensor) -> float:
    """Bits a code carries, given how often each is used."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
