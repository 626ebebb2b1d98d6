"""What all stages of a DL-QAT run share: the model, its texts, its plan and its checkpoints.

Its checkpoints:

energy-0003/     mean square of every input of one block
gptq-0003/       one block of a quantizer pass: weights to round and their grids
train-dlqat-0-1/  a training step: parameters and optimizer state
stage-dlqat/     a finished stage: codes, scales and zero-points of every layer, or A and B
.seconds-dlqat/  time it took, over all attempts that were not killed
audit-0003/      errors of all stages of one block"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.calibration.heldout import heldout_losses
from backend.checkpoints import Checkpoints
from backend.models.blocks import LinearWeight, decoder_blocks, swap_weights, with_data
from backend.quantization.bases import Basis, basis_from
from backend.quantization.config import ALPHA, STAGE_LABELS, DLQATConfig, DLQATStage
from backend.quantization.dlqat.linear import update_factor
from backend.quantization.grid import QuantGrid, QuantizedWeight, quantized_from
from backend.quantization.plan import QuantizationPlan, QuantSettings
from backend.quantization.range_search import quantize_embedding
from backend.reporter import Reporter, stop_if_asked
from backend.training.stage_store import StageStore, block_name

Start = tuple[Tensor, QuantGrid, Basis]  # weights to round [out, in], their grid and basis
Judge = Callable[..., list[float]]  # as `heldout_losses`


class DLQATStageStore(StageStore):
    """The checkpoints of one run; tensors are loaded to `device`."""

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
        """Layer `name` at `stage`."""
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
        """One layer of quantizer pass `name`."""
        tensors = self.tensors(block_name(name, linear.block), f"{linear.module}.")
        bits = self._plan.settings(linear.name).bits
        grid = QuantGrid(bits, tensors["scale"], tensors["zero"])
        return tensors["start"], grid, basis_from(tensors)


def stage_name(stage: str) -> str:
    """The checkpoint of a finished stage."""
    return f"stage-{stage}"


def _label(name: str, file: str) -> str:
    return STAGE_LABELS.get(name.removeprefix("stage-"), name)


@dataclass(frozen=True)
class DLQATRun:
    """One DL-QAT run.

    Attributes:
        model: dense; every replacement of its layers or weights is undone.
        linears: full name -> linear of the layers that are quantized.
        calibration: token ids [segments, L].
        input_ids, labels: training sequences [n, length]; labels of -100 are ignored.
        dtype: of the forward passes.
        dense: dtype of the weights where the quantized model is saved dense; None: it is packed.
        heldout: token ids [windows, L], to judge by; may be empty.
        judge: computes the losses on them.
        embeddings: full name -> the token embedding, and a head of its own, where the plan
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
        """The losses on the held-out windows of the model as it is now, nats per token; empty
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
        return len(decoder_blocks(self.model))

    @property
    def stored(self) -> torch.dtype:
        """The dtype that scales are rounded to where they are saved."""
        dtype: torch.dtype = getattr(torch, self.config.stored)
        return dtype

    def settings(self, linears: Mapping[str, LinearWeight]) -> dict[str, QuantSettings]:
        """Module -> settings of some layers of a block."""
        return {module: self.plan.settings(x.name) for module, x in linears.items()}

    def of_block(self, block: int) -> dict[str, LinearWeight]:
        """Module name -> linear of the layers of `block` that are quantized."""
        return {x.module: x for x in self.linears.values() if x.block == block}

    def quantize(self, name: str, start: Start) -> QuantizedWeight:
        """Round the weights of layer `name` to their grid, and that to the stored precision."""
        W, grid, basis = start
        stored = grid.stored(self.stored, self.plan.settings(name).grid)
        return QuantizedWeight(stored, grid.codes(W).to(torch.uint8), basis)

    @cached_property
    def embeddings(self) -> dict[str, QuantizedWeight]:
        settings = self.plan.embedding
        if settings is None:
            return {}
        weights = {name: self.embedding_weight(name) for name in settings.layers}
        tied = {id(W): name for name, W in reversed(weights.items())}  # one of two names
        return {n: quantize_embedding(weights[n], settings, self.stored) for n in tied.values()}

    def embedding_weight(self, name: str) -> nn.Parameter:
        """The parameter [vocabulary, hidden] of the embedding or the head of that name."""
        return self.model.get_submodule(name).get_parameter("weight")

    def save_rounded(self, stage: str) -> None:
        """Store as `stage` what its pass has left to round."""
        starts = {name: self.store.start(stage, x) for name, x in self.linears.items()}
        self.store.save_stage(stage, {name: self.quantize(name, x) for name, x in starts.items()})

    def weight(self, stage: str, linear: LinearWeight) -> Tensor:
        """The weight [out, in] of `linear` at `stage`, float32; the stage must be finished."""
        if stage == DLQATStage.DENSE:
            return linear.read()
        if stage != DLQATStage.LORA:
            return self.saved(self.store.quantized(stage, linear.name))
        low_rank, W = self.store.tensors(stage_name(stage), f"{linear.name}."), linear.read()
        factor = update_factor(W, ALPHA, self.config.rank)
        return torch.addmm(W, low_rank["B"], low_rank["A"], alpha=factor)

    def saved(self, layer: QuantizedWeight) -> Tensor:
        """The weight [out, in] of a quantized layer as the model is saved, float32."""
        W = layer.dense()
        return W if self.dense is None else W.to(self.dense).to(W.dtype)

    @contextmanager
    def with_embeddings(self, stage: str) -> Iterator[None]:
        """Temporarily replace the embedding and the head by those of a stage."""
        kept = stage in (DLQATStage.DENSE, DLQATStage.LORA)
        layers = {} if kept else self.embeddings
        with swap_weights({self.embedding_weight(n): x.dense() for n, x in layers.items()}):
            yield

    def with_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Temporarily replace weights by `weights`, [out, in] by full name, in the dtype of the
        model, or those of `passed` in theirs."""
        others: dict[Tensor, Tensor] = {}
        for name, W in weights.items():
            own = self.linears[name].layer.get_parameter("weight")
            dtype = W.dtype if W.dtype == torch.bfloat16 else own.dtype
            others[own] = self.linears[name].as_stored(W).to(dtype)
        return with_data(others)

    def passed(self, W: Tensor) -> Tensor:
        """`W` as a pass reads it: rounded to bfloat16 where it does that anyhow, which takes half
        of the memory."""
        return W.to(torch.bfloat16) if self.dtype == torch.bfloat16 else W
