"""Walks over the decoder blocks with the calibration text, one block at work at a time.

energies    the dense model's:   mean square of what every linear reads
compensate  GPTQ:                H = Gram of the inputs in the model whose earlier blocks are
                                 quantised already; the block is compensated, rounded, and passed
audit       the dense model's:   relative error tr(D H D^T) / tr(W H W^T) of every stage, on the
                                 same inputs for all of them, and the figures of its weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from torch import Tensor

from backend.methods.calibration import DenseReference, InputStatistics, StatisticsLevel
from backend.methods.dlqat.config import MERGED_LORA, STAGE_LABELS, DLQATStage
from backend.methods.dlqat.run import DLQATRun
from backend.methods.dlqat.snapshots import code_usage
from backend.methods.dlqat.stage_store import block_name
from backend.methods.linalg import with_damping
from backend.models.blocks import LinearWeight
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.registry import QUANTIZERS, Quantizer
from backend.reporter import REPLAY, Reporter, stop_if_asked
from backend.statistics.reference import ReferenceTensor

FAILED = (
    "quantized", "Use more calibration text, or start from the rounded weights without GPTQ.",
)  # fmt: skip
ENERGY, AUDIT = "energy", "audit"
Starts = dict[str, tuple[Tensor, QuantGrid]]


def find_energies(run: DLQATRun, reporter: Reporter) -> dict[str, Tensor]:
    """Full name -> mean square of each input [in], in the dense model."""
    if not run.store.holds(ENERGY):
        stream, found = run.open_stream(), dict[str, Tensor]()
        for block in range(run.blocks):
            reporter.progress(block, run.blocks, f"Input energies, block {block + 1}")
            seen, hidden = run.collect_inputs(stream, block, StatisticsLevel.ENERGY, reporter)
            found |= {run.of_block(block)[m].name: x.energy.clone() for m, x in seen.items()}
            stream.advance(hidden)
        run.store.save(ENERGY, found)
    return run.store.tensors(ENERGY)


def quantize_blocks(
    run: DLQATRun, name: str, method: str, weight: Callable[[LinearWeight], Tensor],
    reporter: Reporter,
) -> None:  # fmt: skip
    """Run a quantizer block by block on the inputs that the blocks quantized before produce.

    Each block is a checkpoint. A resumed pass runs finished blocks forward with their stored codes,
    which gives the same hidden states bit for bit.

    Args:
        name: of the checkpoints.
        method: name of the quantizer.
        weight: linear -> the weight [out, in] that is quantized.
    """
    missing = [b for b in range(run.blocks) if not run.store.holds(block_name(name, b))]
    if not missing:
        return
    stream, quantizer = run.open_stream(), QUANTIZERS[method]
    level = StatisticsLevel[quantizer.needs.upper()]
    for block in range(missing[-1] + 1):
        linears = run.of_block(block)
        label = f"{STAGE_LABELS[method]}, block {block + 1} of {run.blocks}"
        doing = label if block in missing else REPLAY
        if block in missing:
            weights = {module: weight(linear) for module, linear in linears.items()}
            with run.with_weights({linears[m].name: W for m, W in weights.items()}):
                inputs, _ = run.collect_inputs(stream, block, level, reporter)
            starts = Starts()
            for n, (module, W) in enumerate(weights.items()):
                reporter.progress(block + n / len(weights), run.blocks, doing)
                stop_if_asked(reporter)
                starts[module] = _quantized(
                    run, quantizer, linears[module], W, inputs[module], reporter
                )
            run.store.save_starts(name, block, starts)
        if block < missing[-1]:
            starts = {module: run.store.start(name, block, module) for module in linears}
            rounded = {linears[m].name: grid.nearest(W) for m, (W, grid) in starts.items()}
            with run.with_weights(rounded):
                stream.advance(run.forward(stream, block, reporter))
        reporter.progress(block + 1, run.blocks, doing)


def _quantized(
    run: DLQATRun, quantizer: Quantizer, linear: LinearWeight, W: Tensor, inputs: InputStatistics,
    reporter: Reporter,
) -> tuple[Tensor, QuantGrid]:  # fmt: skip
    """One weight to round and its grid, with more damping where the Hessian needs it."""
    solve = partial(quantizer.quantize, W, inputs, run.settings)
    return with_damping(solve, run.config.damping, reporter.log, linear.name, FAILED)


def quantize_stage(run: DLQATRun, stage: str, reporter: Reporter) -> None:
    """Make `stage` with its post-training quantizer and store it."""
    method = MERGED_LORA.get(stage, stage)
    weight = partial(_weight_before, run, stage)
    if QUANTIZERS[method].needs == "nothing":
        layers = _rounded(run, method, weight, reporter)
    else:
        quantize_blocks(run, stage, method, weight, reporter)
        starts = {
            name: run.store.start(stage, x.block, x.module) for name, x in run.linears.items()
        }
        layers = {name: run.quantise(*start) for name, start in starts.items()}
    run.store.save_stage(stage, layers)


def _weight_before(run: DLQATRun, stage: str, linear: LinearWeight) -> Tensor:
    """The weight that `stage` quantizes: the dense one, or the merged LoRA control."""
    if stage not in MERGED_LORA:
        return linear.read()
    W = run.weight(DLQATStage.LORA, linear)
    return W.mul_(linear.read() != 0) if run.config.keep_zeros else W


def _rounded(
    run: DLQATRun, method: str, weight: Callable[[LinearWeight], Tensor], reporter: Reporter
) -> dict[str, QuantizedWeight]:
    """Full name -> layer, by a quantizer that needs no inputs."""
    layers = dict[str, QuantizedWeight]()
    for done, (name, linear) in enumerate(run.linears.items()):
        stop_if_asked(reporter)
        reporter.progress(done, len(run.linears), "Rounding")
        quantize = partial(QUANTIZERS[method].quantize, weight(linear), InputStatistics())
        layers[name] = run.quantise(*quantize(run.settings, run.config.damping))
    return layers


def audit(run: DLQATRun, stages: Sequence[str], reporter: Reporter) -> dict[str, float]:
    """Reports every tensor at every stage; gives the mean relative output error of each."""
    missing = [b for b in range(run.blocks) if not run.store.holds(block_name(AUDIT, b))]
    stream = run.open_stream() if missing else None
    for block in range(run.blocks):
        doing = f"Statistics, block {block + 1} of {run.blocks}"
        if stream and block in missing:
            seen, hidden = run.collect_inputs(stream, block, StatisticsLevel.GRAM, reporter)
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
    stages: Sequence[str],
    linear: LinearWeight,
    inputs: InputStatistics,
    reporter: Reporter,
) -> dict[str, float]:
    """Reports one tensor at every stage; stage -> relative output error."""
    dense = linear.read()
    reference, target = ReferenceTensor(dense), DenseReference(dense, inputs)
    of = {"tensor": f"{linear.name}.weight", "block": linear.block, "module": linear.module}
    errors: dict[str, float] = {}
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
