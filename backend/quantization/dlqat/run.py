"""State shared by all stages of a DL-QAT run: model, texts, plan and checkpoints.

Checkpoints:

energy-0003/      mean square of every input of one block
gptq-0003/        one block of a quantizer pass: weights to round and their grids
train-dlqat-0-1/  a training step: parameters and optimizer state
stage-dlqat/      a finished stage: codes, scales and zero-points of every layer, or A and B
.seconds-dlqat/   duration of a stage, over all attempts that were not killed
audit-0003/       errors of all stages of one block"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.checkpoints import Checkpoints
from backend.models.blocks import LinearWeight, decoder_blocks, swap_data, swap_weights
from backend.quantization.bases import Basis, basis_from
from backend.quantization.config import ALPHA, STAGE_LABELS, DLQATConfig, DLQATStage
from backend.quantization.dlqat.linear import DLQATLinear, update_factor
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.plan import QuantizationPlan, QuantSettings
from backend.quantization.range_search import quantize_embedding
from backend.reporter import Reporter, stop_if_asked
from backend.training.stage_store import StageStore, block_name

Start = tuple[Tensor, QuantGrid, Basis]  # weights to round [out, in], their grid and basis
Judge = Callable[..., list[float]]  # with the parameters of `heldout_losses`


class DLQATStageStore(StageStore):
    """Checkpoints of one run. Tensors are loaded to `device`."""

    def __init__(self, checkpoints: Checkpoints, plan: QuantizationPlan, device: str) -> None:
        super().__init__(checkpoints, _label, device)
        self._plan = plan

    def save_stage(self, stage: str, layers: Mapping[str, QuantizedWeight]) -> None:
        """Store every layer of a quantized stage."""
        tensors = {
            f"{name}.{part}": tensor
            for name, layer in layers.items()
            for part, tensor in layer.tensors().items()
        }
        self.save(stage_name(stage), tensors)

    def quantized(self, stage: str, name: str) -> QuantizedWeight:
        """Load layer `name` at `stage`."""
        bits, tensors = self._plan.settings(name).bits, self.tensors(stage_name(stage), f"{name}.")
        return quantized_from(name, bits, tensors)

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
    def embeddings(self) -> dict[str, QuantizedWeight]:
        settings = self.plan.embedding
        if settings is None:
            return {}
        weights = {name: self.embedding_weight(name) for name in settings.layers}
        unique = {id(W): name for name, W in reversed(weights.items())}  # tied weights once
        return {
            n: quantize_embedding(weights[n], settings, self.scale_dtype) for n in unique.values()
        }

    def embedding_weight(self, name: str) -> nn.Parameter:
        """Return the parameter [vocabulary, hidden] of the embedding or head `name`."""
        return self.model.get_submodule(name).get_parameter("weight")

    def save_rounded(self, stage: str) -> None:
        """Round the weights that the pass of `stage` has stored, and store the stage."""
        starts = ((name, self.store.start(stage, x)) for name, x in self.linears.items())
        self.store.save_stage(stage, {name: self.quantize(name, start) for name, start in starts})

    def weight(self, stage: str, linear: LinearWeight) -> Tensor:
        """Return the weight [out, in] of `linear` at a finished stage, float32."""
        if stage == DLQATStage.DENSE:
            return linear.read()
        if stage != DLQATStage.LORA:
            return self.saved(self.store.quantized(stage, linear.name))
        low_rank, W = self.store.tensors(stage_name(stage), f"{linear.name}."), linear.read()
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
        layers = {} if unchanged else self.embeddings
        with swap_weights({self.embedding_weight(n): x.dense() for n, x in layers.items()}):
            yield

    def with_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Temporarily replace weights, [out, in] by full name. They keep the dtype bfloat16;
        otherwise they are converted to the dtype of the model."""
        replacements: dict[Tensor, Tensor] = {}
        for name, W in weights.items():
            parameter = self.linears[name].layer.get_parameter("weight")
            dtype = W.dtype if W.dtype == torch.bfloat16 else parameter.dtype
            replacements[parameter] = self.linears[name].as_stored(W).to(dtype)
        return swap_data(replacements)

    def in_pass_precision(self, W: Tensor) -> Tensor:
        """Return `W` rounded to bfloat16 if the forward pass does so anyway. This halves the
        memory."""
        return W.to(torch.bfloat16) if self.dtype == torch.bfloat16 else W

    def halved(self, W: Tensor, dtype: torch.dtype) -> Tensor:
        """Return `W` in a 16-bit dtype if the model was loaded in 16 bits."""
        return W if self.model.dtype == torch.float32 else W.to(dtype)
