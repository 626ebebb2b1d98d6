"""DL-QAT (Ke et al., EMNLP 2024 industry track) and its baselines, from one dense model.

    grid     scales and zero-points of every group, found once and then fixed
    start    the dense weights, those GPTQ has compensated, or those of block-wise training
    blocks   a rival: weights and grids trained block by block (see `block_training`)
    train    A, B inside the rounding, m after it (see `linear`)
    convert  codes, with m folded into the scales: nothing of A, B, m remains
    audit    all stages measured on the same inputs

Use it as

    qat = DLQAT(model, calibration, input_ids, labels, config, checkpoints)
    for stage in qat.prepare(reporter):
        qat.make(stage, reporter)
        with qat.installed(stage):
            ...                             # `model` is that stage's model here
    qat.audit(reporter)
    layers = qat.converted(DLQATStage.DLQAT)   # to export
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from backend.checkpoints import Checkpoints
from backend.errors import ConfigError
from backend.models.blocks import LinearWeight, block_linears, decoder_blocks
from backend.models.loading import weights_hash
from backend.models.patching import swap_modules
from backend.models.precision import all_finite, resolve_dtype
from backend.quantization.dlqat.audit import audit
from backend.quantization.dlqat.block_training import train_blocks
from backend.quantization.dlqat.config import TRAINED, DLQATConfig, DLQATStage
from backend.quantization.dlqat.layer_selection import quantized_layers, refuse_idle
from backend.quantization.dlqat.linear import DLQATLinear
from backend.quantization.dlqat.lora import train_lora
from backend.quantization.dlqat.losses import teacher_loss, text_loss
from backend.quantization.dlqat.passes import find_energies
from backend.quantization.dlqat.quantizer_pass import quantize_blocks, quantize_stage
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.dlqat.snapshots import TrainingSnapshots
from backend.quantization.dlqat.stage_store import DLQATStageStore, stage_name
from backend.quantization.dlqat.trainer import StageTrainer, trainable
from backend.quantization.grid import QuantGrid, QuantizedWeight
from backend.quantization.range_search import search_range
from backend.reporter import REPLAY, Reporter, SilentReporter, stop_if_asked
from backend.training import distributed


class DLQAT:
    """One run. Deterministic for the same model, texts, config, seed, threads and machine, even if
    it is stopped and resumed. To resume, load the dense model again.

    Args:
        model: dense, in memory, on the device to work on. Its parameters are frozen; those that
            are not quantised are rounded to their stored precision, so that the dense reference
            has the same embeddings and norms as the quantised stages.
        calibration: token ids [segments, L], no padding.
        input_ids, labels: training sequences [n, length]; labels of -100 are ignored.
        checkpoints: of this run alone; stored stages are not made again.
        dense: dtype of all weights where the model is saved dense; stages are then measured with
            their weights rounded to it.

    Raises:
        ConfigError: the config does not fit the model or the texts.

    Attributes:
        seconds: time spent on each stage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Tensor,
        input_ids: Tensor,
        labels: Tensor,
        config: DLQATConfig,
        checkpoints: Checkpoints,
        seed: int = 0,
        dense: torch.dtype | None = None,
    ) -> None:
        refuse_idle(config)
        blocks = range(len(decoder_blocks(model)))
        linears = [x for block in blocks for x in block_linears(model, block).values()]
        chosen = {x.name: x for x in quantized_layers(linears, config)}
        _require_rows(input_ids, labels, config)
        model.requires_grad_(False)
        store = DLQATStageStore(checkpoints, config.bits, str(model.device))
        digest = hashlib.sha256(f"{config.identity} {seed} {weights_hash(model)}".encode())
        for ids in (calibration, input_ids, labels):
            digest.update(ids.cpu().contiguous().numpy().data)
        precision = store.claim(digest.hexdigest(), resolve_dtype(config.precision, model.device))
        dtype = getattr(torch, precision)
        self.run = DLQATRun(
            model, chosen, calibration, input_ids, labels, config, dtype, store, seed, dense
        )
        self.seconds: dict[str, float] = {}
        _round_rest(self.run)

    @property
    def stages(self) -> list[str]:
        """The stages after the dense model, in order."""
        return self.run.config.stages[1:]

    @torch.no_grad()
    def prepare(self, reporter: Reporter) -> list[str]:
        """Compute what several stages need: input energies, or the GPTQ pass.

        Returns:
            The stages to make, in order.
        """
        run = self.run
        if run.config.needs_gptq:
            with self._timed(DLQATStage.GPTQ) if DLQATStage.GPTQ in self.stages else nullcontext():
                quantize_blocks(run, "gptq", "gptq", LinearWeight.read, reporter)
        if run.config.needs_energies:
            find_energies(run, reporter)
        return self.stages

    def make(self, stage: str, reporter: Reporter) -> None:
        """Make `stage`, given those before it; returns at once if it is stored.

        Raises:
            ComputeError: the computation failed; names the layer or step.
            CancelledError: cancellation was requested.
        """
        with self._timed(stage):
            if self.run.store.holds(stage_name(stage)):
                reporter.progress(1, 1, REPLAY)
            else:
                self._make(stage, reporter)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to that of `stage` and its earlier attempts, unless it is
        already stored."""
        store, name = self.run.store, f".seconds-{stage}"  # hidden: not a checkpoint to resume from
        stored = float(store.facts(name).get("seconds", 0.0))
        self.seconds[stage] = before = max(self.seconds.get(stage, 0.0), stored)
        was_stored, began = store.holds(stage_name(stage)), time.perf_counter()
        try:
            yield
        finally:
            if not was_stored:
                self.seconds[stage] = before + time.perf_counter() - began
                with suppress(OSError):
                    store.save(name, {}, seconds=self.seconds[stage])

    def _make(self, stage: str, reporter: Reporter) -> None:
        run = self.run
        if stage == DLQATStage.BLOCKS:
            train_blocks(run, self._start, reporter)
            return
        if stage not in (*TRAINED, DLQATStage.LORA):
            quantize_stage(run, stage, reporter)
            return
        distributed.announce(stage)
        self._train(stage, reporter)

    def follow(self) -> None:
        """Train with the process that runs `make`, until that has no training left."""
        for stage in distributed.tasks():
            self._train(stage, SilentReporter())

    def _train(self, stage: str, reporter: Reporter) -> None:
        if stage == DLQATStage.LORA:
            train_lora(self.run, reporter)
        else:
            self._train_rounded(stage, reporter)

    def _train_rounded(self, stage: str, reporter: Reporter) -> None:
        run, config = self.run, self.run.config
        layers = self._layers(stage, reporter)
        parameters = {
            f"{name}.{part}": parameter
            for name, layer in layers.items()
            for part, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        rates = {n: config.rate_m if n.endswith(".m") else config.rate for n in parameters}
        snapshots = TrainingSnapshots(
            stage, layers, run.linears, config.steps, config.pictures, reporter
        )
        watch = snapshots if distributed.is_first() else _watch_nothing
        with swap_modules(run.model, layers), trainable(run.model, config.checkpointing, reporter):
            distils = stage == DLQATStage.DLQAT_KD
            loss = teacher_loss(run, run.model, layers) if distils else text_loss(run, run.model)
            StageTrainer(run, stage, parameters, rates, loss, watch, reporter).train()
        run.store.save_stage(
            stage, {n: layer.convert(run.stored, config.grid) for n, layer in layers.items()}
        )

    def _layers(self, stage: str, reporter: Reporter) -> dict[str, DLQATLinear]:
        """Full name -> trainable layer that replaces that linear."""
        run, config = self.run, self.run.config
        generator, layers = torch.Generator().manual_seed(run.seed), dict[str, DLQATLinear]()
        for done, (name, linear) in enumerate(run.linears.items()):
            stop_if_asked(reporter)
            reporter.progress(0, 1, f"Range search, layer {done + 1} of {len(run.linears)}")
            start, grid = self._start_of_training(linear)
            layers[name] = DLQATLinear(
                linear.layer,  # type: ignore[arg-type]
                grid,
                None if config.start == "rounded" else start,  # None: its own weights
                rank=config.rank,
                alpha=config.alpha,
                trains=config.trains(stage),
                keep_zeros=config.keep_zeros,
                generator=generator,
            )
        return layers

    def _start_of_training(self, linear: LinearWeight) -> tuple[Tensor, QuantGrid]:
        """Initial weights of a trained stage, and the grid."""
        if self.run.config.start == "block-wise":
            return self.run.store.start(DLQATStage.BLOCKS, linear.block, linear.module)[:2]
        return self._start(linear)

    def _start(self, linear: LinearWeight) -> tuple[Tensor, QuantGrid]:
        """The same of block-wise training."""
        config = self.run.config
        if config.start != "rounded":
            return self.run.store.start("gptq", linear.block, linear.module)[:2]
        energy = self._energies[linear.name] if config.needs_energies else None
        W = linear.read()
        return W, search_range(W, config.bits, config.group_size, config.grid, config.space, energy)

    @cached_property
    def _energies(self) -> dict[str, Tensor]:
        return self.run.store.tensors("energy")

    def converted(self, stage: str) -> dict[str, QuantizedWeight]:
        """Full name -> codes, scales and zero-points of every layer of a finished stage."""
        return {name: self.run.store.quantized(stage, name) for name in self.run.linears}

    @contextmanager
    def installed(self, stage: str) -> Iterator[None]:
        """Temporarily turn the model into that of a finished stage."""
        weights = {name: self.run.weight(stage, x) for name, x in self.run.linears.items()}
        with self.run.with_weights(weights):
            yield

    @torch.no_grad()
    def audit(self, reporter: Reporter) -> dict[str, float]:
        """Report the statistics of all tensors at all stages; stage -> mean relative error."""
        return audit(self.run, self.run.config.stages, reporter)


def _watch_nothing(step: int) -> None:
    """In place of snapshots, in a process that reports nothing."""


def _require_rows(input_ids: Tensor, labels: Tensor, config: DLQATConfig) -> None:
    if input_ids.dim() != 2 or input_ids.shape != labels.shape or not len(input_ids):
        raise ConfigError(
            f"Training data of shape {list(input_ids.shape)} with labels {list(labels.shape)}.",
            "Both must be [sequences, length], with at least one sequence.",
            "Pass token ids and labels of the same shape.",
        )


def _round_rest(run: DLQATRun) -> None:
    """Round every parameter that is not quantised to its stored precision.

    Raises:
        ConfigError: a value overflows it.
    """
    quantized = {id(x.layer.get_parameter("weight")) for x in run.linears.values()}
    for name, parameter in run.model.named_parameters():
        if id(parameter) in quantized:
            continue
        rounded = parameter.data.to(run.dtype_of_rest)
        if not all_finite(rounded):
            raise ConfigError(
                f"{name} overflows {str(run.dtype_of_rest).removeprefix('torch.')}.",
                f"Its largest value is {parameter.abs().max().item():.3g}.",
                "Choose bfloat16 or float32 as the stored precision.",
                field="stored",
            )
        parameter.data.copy_(rounded)
