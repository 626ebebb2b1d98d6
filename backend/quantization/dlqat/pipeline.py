"""DL-QAT (Ke et al., EMNLP 2024 industry track) and its baselines, from one dense model.

    grid     scales and zero-points of every group, searched once and then fixed
    start    the dense weights, weights compensated by GPTQ, or weights from block-wise training
    blocks   baseline: weights and grids trained block by block (see `block_training`)
    train    A, B inside the rounding, m after it (see `linear`)
    convert  codes, with m folded into the scales; A, B and m are no longer needed
    audit    all stages measured on the same inputs

Usage:

    qat = DLQAT(model, calibration, input_ids, labels, config, plan, checkpoints)
    for stage in qat.prepare(reporter):
        qat.make(stage, reporter)
        with qat.installed(stage):
            ...                             # `model` has the weights of the stage here
    qat.audit(reporter)
    layers = qat.converted(DLQATStage.DLQAT)   # to export
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.checkpoints import Checkpoints
from backend.errors import ConfigError
from backend.models.block_offload import all_resident, change_parameters, resident
from backend.models.blocks import (
    LinearWeight,
    all_finite,
    block_linears,
    decoder_blocks,
    resolve_dtype,
    swap_modules,
)
from backend.models.loading import weights_hash
from backend.quantization.config import ALPHA, TRAINED, DLQATConfig, DLQATStage
from backend.quantization.dlqat.block_training import BlockTraining
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.passes import ENERGY, EnergyPass, QuantizerPass, quantize_stage
from backend.quantization.dlqat.run import DLQATRun, DLQATStageStore, Judge, stage_name
from backend.quantization.dlqat.statistics import TrainingSnapshots, audit
from backend.quantization.dlqat.trainer import (
    RETRY_RATE_FACTOR,
    failed_attempts,
    teacher_loss,
    text_loss,
    train_lora,
    train_stage,
    trainable,
)
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.plan import QuantizationPlan
from backend.quantization.range_search import search_range
from backend.reporter import REPLAY, Reporter, at_block, stop_if_asked
from backend.training.stage_store import block_name


class DLQAT:
    """A DL-QAT run. Deterministic for the same model, texts, config, seed, threads and machine,
    even if it is stopped and resumed. To resume, load the dense model again.

    Args:
        model: dense model, on the device to work on. Its parameters are frozen. Those that are not
            quantized are rounded to their stored precision, so that the dense reference has the
            same embeddings and norms as the quantized stages.
        checkpoints: checkpoints of this run alone; stored stages are not made again.
        seed: seed of the training order and of A.

    The other arguments are described in `DLQATRun`.

    Raises:
        ConfigError: the plan does not fit the model, or a weight overflows the stored precision.

    Attributes:
        seconds: seconds spent on each stage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        config: DLQATConfig,
        plan: QuantizationPlan,
        checkpoints: Checkpoints,
        seed: int = 0,
        dense: torch.dtype | None = None,
        heldout: Tensor | None = None,
        judge: Judge = heldout_losses,
    ) -> None:
        heldout = calibration[:0] if heldout is None else heldout
        linears = _planned_linears(model, plan)
        model.requires_grad_(False)
        store = DLQATStageStore(checkpoints, plan, str(model.device))
        identity = f"{config.model_dump_json()} {plan.model_dump_json()} {seed} "
        identity += weights_hash(model, torch.float32)  # the same on any device
        digest = hashlib.sha256(identity.encode())
        for ids in (calibration, heldout, input_ids, labels):
            digest.update(ids.cpu().contiguous().numpy().data)
        precision = store.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
        dtype = getattr(torch, precision)
        self.run = DLQATRun(
            model,
            linears,
            calibration,
            input_ids,
            labels,
            config,
            plan,
            dtype,
            store,
            seed,
            dense,
            heldout,
            judge,
        )
        self.seconds: dict[str, float] = {}
        self._losses: dict[str, list[float]] = {}  # stage -> losses on the held-out windows
        _round_unquantized(self.run)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages after the dense model, in running order."""
        return self.run.plan.stages[1:]

    @torch.no_grad()
    def prepare(self, reporter: Reporter) -> tuple[str, ...]:
        """Compute the GPTQ pass or the input energies, which several stages use. Return the stages
        to make, in order."""
        run = self.run
        if run.config.needs_gptq:
            with self._timed(DLQATStage.GPTQ):
                gptq = QuantizerPass(run, "gptq", "gptq", LinearWeight.read, reporter)
                gptq.walk(run.blocks)
        if run.config.needs_energies:
            EnergyPass(run, ENERGY, "Input energies", reporter).walk(run.blocks)
        return self.stages

    def make(self, stage: str, reporter: Reporter) -> None:
        """Make `stage` from the stages before it. Return at once if it is stored.

        Raises:
            ComputeError: the computation failed; the message names the layer or step.
            CancelledError: cancellation was requested.
        """
        with self._timed(stage):
            if self.run.store.holds(stage_name(stage)):
                reporter.progress(1, 1, REPLAY)
            else:
                self._make(stage, reporter)

    def heldout_losses(self, stage: str, reporter: Reporter) -> list[float]:
        """Return the losses of a finished stage on the held-out windows; empty without windows."""
        if stage not in self._losses:
            with self.installed(stage, self.run.in_pass_precision):
                self._losses[stage] = self.run.heldout_losses(reporter)
        return self._losses[stage]

    def lowered_rate(self, stage: str) -> float | None:
        """Return the learning rate of a stage if that of the config was too high, otherwise
        None."""
        failed = failed_attempts(self.run.store, stage)
        return self.run.config.learning_rate * RETRY_RATE_FACTOR**failed if failed else None

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time of the body to the seconds of `stage`, including earlier attempts, unless
        the stage is already stored."""
        store, name = self.run.store, f".seconds-{stage}"  # hidden: a run cannot resume from it
        earlier_s = float(store.facts(name)["seconds"]) if store.holds(name) else 0.0
        self.seconds[stage] = earlier_s = max(self.seconds.get(stage, 0.0), earlier_s)
        was_stored, started = store.holds(stage_name(stage)), time.perf_counter()
        try:
            yield
        finally:
            if not was_stored:
                self.seconds[stage] = earlier_s + time.perf_counter() - started
                with suppress(OSError):
                    store.save(name, {}, seconds=self.seconds[stage])

    def _make(self, stage: str, reporter: Reporter) -> None:
        run = self.run
        if stage == DLQATStage.BLOCKS:
            BlockTraining(run, self._start, reporter).walk(run.blocks)
            run.save_rounded(stage)
            return
        if stage not in (*TRAINED, DLQATStage.LORA):
            quantize_stage(run, stage, reporter)
            return
        if stage == DLQATStage.LORA:
            with all_resident(run.model):
                train_lora(run, reporter)
            return
        self._train(stage, reporter)

    def _train(self, stage: str, reporter: Reporter) -> None:
        run, config = self.run, self.run.config
        layers = self._layers(stage, reporter)
        parameters = {
            f"{name}.{part}": parameter
            for name, layer in layers.items()
            for part, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        snapshots = TrainingSnapshots(stage, layers, run, reporter)

        def judge() -> list[float]:
            return self._heldout_losses_of(stage, layers, reporter)

        # before training the layers equal the stage they start from
        source = {"gptq": DLQATStage.GPTQ, "block-wise": DLQATStage.BLOCKS}.get(config.start)
        before = self.heldout_losses(source, reporter) if source in self.stages else judge()
        distills = stage == DLQATStage.DLQAT_KD
        loss = teacher_loss(run, run.model, layers) if distills else text_loss(run, run.model)
        dense = [] if config.needs_dense(stage) else [f"{name}.weight" for name in layers]
        with (
            all_resident(run.model, without=dense),
            swap_modules(run.model, layers),
            trainable(run.model, config.checkpointing, reporter),
        ):
            train_stage(run, stage, parameters, loss, snapshots, judge, before, reporter)
            run.save_stage(stage, lambda x: run.converted(x.name, layers[x.name]))

    def _heldout_losses_of(
        self,
        stage: str,
        layers: Mapping[str, DLQATLinear],
        reporter: Reporter,
    ) -> list[float]:
        """Return the held-out losses of a stage in training, with the weights of the converted
        `layers`. The model may contain these. Their codes are not kept, which saves memory."""
        run, bases = self.run, {name: layer.base for name, layer in layers.items()}

        def weight(x: LinearWeight) -> Tensor:
            return run.in_pass_precision(run.saved(run.converted(x.name, layers[x.name])))

        with swap_modules(run.model, bases), run.at_stage(stage, weight):
            self._losses[stage] = run.heldout_losses(reporter)
        return self._losses[stage]

    def _layers(self, stage: str, reporter: Reporter) -> dict[str, DLQATLinear]:
        """Create the trainable layers that replace the linears, by full name."""
        run, config = self.run, self.run.config
        generator, layers = torch.Generator().manual_seed(run.seed), dict[str, DLQATLinear]()
        pass_name = DLQATStage.BLOCKS if config.start == "block-wise" else DLQATStage.GPTQ
        for block, linears in groupby(run.linears.values(), lambda x: x.block):
            reporter.progress(0, 1, at_block(block, run.blocks, "Range search"))
            with resident(run.model, block):
                for linear in linears:
                    stop_if_asked(reporter)
                    start, grid = self._start(linear, pass_name)
                    # float16 moves fewer starts to another code than bfloat16
                    layers[linear.name] = DLQATLinear(
                        linear.layer,  # type: ignore[arg-type]
                        grid,
                        None if config.start == "rounded" else run.halved(start),
                        rank=config.rank,
                        alpha=ALPHA,
                        trains=config.trains(stage),
                        keep_zeros=run.plan.settings(linear.name).keep_zeros,
                        generator=generator,
                    )
        return layers

    def _start(self, linear: LinearWeight, name: str = DLQATStage.GPTQ) -> tuple[Tensor, QuantGrid]:
        """Return the initial weights and the grid of a layer. `name` is the pass they come from,
        unless training starts from the dense weights."""
        if self.run.config.start != "rounded":
            return self.run.store.start(name, linear)[:2]
        W, settings, energy = linear.read(), self.run.plan.settings(linear.name), None
        if self.run.config.needs_energies:
            energy = self.run.store.tensors(block_name(ENERGY, linear.block))[linear.module]
        size = (settings.bits, settings.group_size, settings.grid)
        return W, search_range(W, *size, settings.range_search, energy)

    def converted(self, stage: str) -> dict[str, QuantizedWeight]:
        """Return the quantized layers of a finished stage by full name, including the embedding and
        the head if they are quantized."""
        layers = {name: self.run.store.quantized(stage, x) for name, x in self.run.linears.items()}
        return {**self.run.embeddings, **layers}

    def installed(
        self, stage: str, change: Callable[[Tensor], Tensor] = lambda W: W
    ) -> AbstractContextManager[None]:
        """Temporarily give the model the weights of a finished stage, after applying `change` to
        each."""
        return self.run.at_stage(stage, lambda x: change(self.run.weight(stage, x)))

    @torch.no_grad()
    def audit(self, reporter: Reporter) -> dict[str, float]:
        """Report the statistics of all tensors at all stages. Return the mean relative error of
        each stage."""
        return audit(self.run, reporter)


def _planned_linears(model: PreTrainedModel, plan: QuantizationPlan) -> dict[str, LinearWeight]:
    """Return the linears that the plan quantizes, by full name.

    Raises:
        ConfigError: the plan belongs to another model.
    """
    blocks = range(len(decoder_blocks(model)))
    linears = {x.name: x for block in blocks for x in block_linears(model, block).values()}
    planned = [name for group in plan.groups for name in group.layers]
    outside = {model.get_input_embeddings(), model.get_output_embeddings()}
    layers = {*linears, *(name for name, module in model.named_modules() if module in outside)}
    planned += plan.embedding.layers if plan.embedding else ()
    if missing := [name for name in planned if name not in layers]:
        raise ConfigError(
            "The plan belongs to another model.",
            f"The model has no layer {missing[0]}.",
            "Submit the run again.",
        )
    return {name: x for name, x in linears.items() if plan.layers.get(name)}


def _round_unquantized(run: DLQATRun) -> None:
    """Round every parameter that is not quantized to its stored precision.

    Raises:
        ConfigError: a value overflows that precision.
    """
    dtype = run.dense or run.scale_dtype
    quantized = {f"{name}.weight" for name in run.linears}

    def rounded(name: str, values: Tensor) -> Tensor:
        if name in quantized:
            return values
        if not all_finite(values.to(dtype)):
            raise ConfigError(
                f"{name} overflows {str(dtype).removeprefix('torch.')}.",
                f"Its largest value is {values.abs().max().item():.3g}.",
                "Choose bfloat16 or float32 as the saved precision.",
                field="saved_precision",
            )
        return values.to(dtype).to(values.dtype)

    change_parameters(run.model, rounded)
