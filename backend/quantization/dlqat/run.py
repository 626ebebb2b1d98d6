"""State shared by all stages of a DL-QAT run: model, texts, plan and checkpoints.

Checkpoints:

energy-0003/      mean square of every input of one block
gptq-0003/        one block of a quantizer pass: weights to round and their grids
train-dlqat-0-1/  a training step: parameters and optimizer state
stage-dlqat/      a finished stage: codes, scales and zero-points, a file per block; or A and B
.embeddings/      codes, scales and zero-points of embedding and head
.seconds-dlqat/   duration of a stage, over all attempts that were not killed
audit-0003/       errors of all stages of one block"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.checkpoints import Checkpoints
from backend.models.block_offload import overridden
from backend.models.blocks import (
    LinearWeight,
    decoder_blocks,
    replaced_data,
    swap_data,
)
from backend.quantization.bases import Basis, basis_from
from backend.quantization.config import ALPHA, STAGE_LABELS, DLQATConfig, DLQATStage
from backend.quantization.dlqat.linear import DLQATLinear, update_factor
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.plan import QuantizationPlan, QuantSettings
from backend.quantization.range_search import quantize_embedding
from backend.reporter import Reporter, stop_if_asked
from backend.training.stage_store import StageStore, block_name

BLOCK = "block"  # prefix of the files of a finished stage
EMBEDDINGS = ".embeddings"  # hidden: a run cannot resume from it
EMBEDDING_PARTS = 16  # parts whose float32 values are in memory one after the other
Start = tuple[Tensor, QuantGrid, Basis]  # weights to round [out, in], their grid and basis
Judge = Callable[..., list[float]]  # with the parameters of `heldout_losses`


class DLQATStageStore(StageStore):
    """Checkpoints of one run. Tensors are loaded to `device`."""

    def __init__(self, checkpoints: Checkpoints, plan: QuantizationPlan, device: str) -> None:
        super().__init__(checkpoints, _label, device)
        self._plan = plan

    def save_stage(self, stage: str, blocks: Iterable[Mapping[str, QuantizedWeight]]) -> None:
        """Store the layers of a quantized stage, block by block."""
        files = (
            (
                block_name(BLOCK, index),
                {
                    f"{name}.{part}": tensor
                    for name, layer in layers.items()
                    for part, tensor in layer.tensors().items()
                },
            )
            for index, layers in enumerate(blocks)
        )
        self.save_files(stage_name(stage), files, {})

    def quantized(self, stage: str, linear: LinearWeight) -> QuantizedWeight:
        """Load a layer at `stage`."""
        name, file = linear.name, block_name(BLOCK, linear.block)
        tensors = self.tensors(stage_name(stage), f"{name}.", file)
        return quantized_from(name, self._plan.settings(name).bits, tensors)

    def save_starts(self, name: str, block: int, starts: Mapping[str, Start]) -> None:
        """Store one block of a quantizer pass, by module."""
        tensors = {
            f"{module}.{part}": tensor
            for module, (W, grid, basis) in starts.items()
            for part, tensor in {
                "start": W,
                "scale": grid.scale,
                "zero": grid.zero,
                **basis.tensors(),
            }.items()
        }
        self.save(block_name(name, block), tensors)

    def start(self, name: str, linear: LinearWeight) -> Start:
        """Load one layer of quantizer pass `name`."""
        tensors = self.tensors(block_name(name, linear.block), f"{linear.module}.")
        bits = self._plan.settings(linear.name).bits
        grid = QuantGrid(bits, tensors["scale"], tensors["zero"])
        return tensors["start"], grid, basis_from(tensors)


def stage_name(stage: str) -> str:
    """Return the checkpoint name of a finished stage."""
    return f"stage-{stage}"


def _label(name: str, file: str) -> str:
    return STAGE_LABELS.get(name.removeprefix("stage-"), name)


@dataclass(frozen=True)
class DLQATRun:
    """A DL-QAT run.

    Attributes:
        model: dense model; every replacement of its layers or weights is undone.
        linears: full name -> linear of each quantized layer.
        calibration: token ids [segments, L].
        input_ids: training sequences [n, length].
        labels: labels [n, length] of the training sequences; -100 is ignored.
        dtype: dtype of the forward passes.
        dense: dtype of the weights if the quantized model is saved dense; None if it is packed.
        heldout: held-out token ids [windows, L]; may be empty.
        judge: computes the losses on the held-out windows.
        embeddings: full name -> token embedding, and the head unless it is tied, if the plan
            quantizes them. The dense model and the LoRA control keep theirs.
    """

    model: PreTrainedModel
    linears: dict[str, LinearWeight]
    calibration: Tensor
    input_ids: Tensor
    labels: Tensor
    config: DLQATConfig
    plan: QuantizationPlan
    dtype: torch.dtype
    store: DLQATStageStore
    seed: int
    dense: torch.dtype | None = None
    heldout: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    judge: Judge = heldout_losses

    def heldout_losses(self, reporter: Reporter) -> list[float]:
        """Return the losses of the current model on the held-out windows, in nats per token; empty
        without windows."""
        if not len(self.heldout):
            return []
        return self.judge(
            self.model,
            self.heldout,
            self.dtype,
            lambda _: stop_if_asked(reporter),
            batch=self.config.batch,
        )

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(decoder_blocks(self.model))

    @property
    def scale_dtype(self) -> torch.dtype:
        """Dtype of saved scales."""
        dtype: torch.dtype = getattr(torch, self.config.saved_precision)
        return dtype

    def settings(self, linears: Mapping[str, LinearWeight]) -> dict[str, QuantSettings]:
        """Map the modules of a block to their settings."""
        return {module: self.plan.settings(x.name) for module, x in linears.items()}

    def of_block(self, block: int) -> dict[str, LinearWeight]:
        """Map the modules of a block to its quantized linears."""
        return {x.module: x for x in self.linears.values() if x.block == block}

    def quantize(self, name: str, start: Start) -> QuantizedWeight:
        """Round the weights of layer `name` to their grid, and the grid to the stored precision."""
        W, grid, basis = start
        stored_grid = grid.stored(self.scale_dtype, self.plan.settings(name).grid)
        return QuantizedWeight(stored_grid, grid.codes(W).to(torch.uint8), basis)

    @cached_property
    def _embedding_names(self) -> list[str]:
        """Names of the embedding and head that the plan quantizes, tied weights once. They are
        quantized into a checkpoint, because the codes of a large vocabulary fill much memory."""
        settings = self.plan.embedding
        if settings is None:
            return []
        weights = {name: self.embedding_weight(name) for name in settings.layers}
        names = [*{id(W): name for name, W in reversed(weights.items())}.values()]
        if not self.store.holds(EMBEDDINGS):
            layers = (
                (n, quantize_embedding(weights[n], settings, self.scale_dtype)) for n in names
            )
            self.store.save_files(EMBEDDINGS, ((n, x.tensors()) for n, x in layers), {})
        return names

    @property
    def embeddings(self) -> dict[str, QuantizedWeight]:
        return {name: self.embedding(name) for name in self._embedding_names}

    def embedding(self, name: str) -> QuantizedWeight:
        """Load the codes of the embedding or head `name`."""
        assert self.plan.embedding
        tensors = self.store.tensors(EMBEDDINGS, file=name)
        return quantized_from(name, self.plan.embedding.bits, tensors)

    def embedding_weight(self, name: str) -> nn.Parameter:
        """Return the parameter [vocabulary, hidden] of the embedding or head `name`."""
        return self.model.get_submodule(name).get_parameter("weight")

    def save_stage(self, stage: str, quantized: Callable[[LinearWeight], QuantizedWeight]) -> None:
        """Store the `quantized` layers as a finished stage, block by block."""
        blocks = (self.of_block(block).values() for block in range(self.blocks))
        self.store.save_stage(stage, ({x.name: quantized(x) for x in block} for block in blocks))

    def save_rounded(self, stage: str) -> None:
        """Round the weights that the pass of `stage` has stored, and store the stage."""
        self.save_stage(stage, lambda x: self.quantize(x.name, self.store.start(stage, x)))

    def weight(self, stage: str, linear: LinearWeight) -> Tensor:
        """Return the weight [out, in] of `linear` at a finished stage, float32. Its block must be
        in memory at the stage lora."""
        if stage != DLQATStage.LORA:
            return self.saved(self.store.quantized(stage, linear))
        return self.merged(linear, linear.read())

    def merged(self, linear: LinearWeight, W: Tensor) -> Tensor:
        """Return the dense weight `W` [out, in] of `linear` with the update of the stage lora."""
        low_rank = self.store.tensors(stage_name(DLQATStage.LORA), f"{linear.name}.")
        factor = update_factor(W, ALPHA, self.config.rank)
        return torch.addmm(W, low_rank["B"], low_rank["A"], alpha=factor)

    def converted(self, name: str, layer: DLQATLinear) -> QuantizedWeight:
        """Return the codes of the trained layer `name`, with the grid in the saved precision."""
        return layer.convert(self.scale_dtype, self.plan.settings(name).grid)

    def saved(self, layer: QuantizedWeight) -> Tensor:
        """Return the weight [out, in] of a quantized layer in the saved model, float32."""
        W = layer.dense()
        return W if self.dense is None else W.to(self.dense).to(W.dtype)

    @contextmanager
    def with_embeddings(self, stage: str) -> Iterator[None]:
        """Temporarily replace the embedding and the head with those of a stage."""
        unchanged = stage in (DLQATStage.DENSE, DLQATStage.LORA)
        replacements = dict[Tensor, Tensor]()
        for name in [] if unchanged else self._embedding_names:
            parameter, layer = self.embedding_weight(name), self.embedding(name)
            replacements[parameter] = torch.empty_like(parameter)
            parts = layer.split(EMBEDDING_PARTS), replacements[parameter].chunk(EMBEDDING_PARTS)
            for part, values in zip(*parts, strict=True):
                values.copy_(part.dense())
        with swap_data(replacements):
            yield

    def with_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Temporarily replace weights of blocks in memory, [out, in] by full name."""
        return swap_data(replaced_data({self.linears[name]: W for name, W in weights.items()}))

    @contextmanager
    def at_stage(self, stage: str, weight: Callable[[LinearWeight], Tensor]) -> Iterator[None]:
        """Temporarily give the model the weights [out, in] of a stage. `weight` returns that of a
        layer; the block of the layer is in memory."""

        def of_block(block: int) -> dict[str, Tensor]:
            return {module: weight(x) for module, x in self.of_block(block).items()}

        with overridden(self.model, of_block), self.with_embeddings(stage):
            yield

    def in_pass_precision(self, W: Tensor) -> Tensor:
        """Return `W` rounded to bfloat16 if the forward pass does so anyway. This halves the
        memory."""
        return W.to(torch.bfloat16) if self.dtype == torch.bfloat16 else W

    def halved(self, W: Tensor) -> Tensor:
        """Return `W` in float16 if the model was loaded in 16 bits."""
        return W if self.model.dtype == torch.float32 else W.half()
