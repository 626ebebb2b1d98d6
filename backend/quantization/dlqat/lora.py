"""The control: plain LoRA (Hu et al. 2021), not quantised.

    y = x (W0 + c B A)^T + b,   c as in `linear`,   taken as   base(x) + c (x A^T) B^T

Same sequences, steps and schedule as DL-QAT, so that what is learned from the text is not mistaken
for an effect of the method. A is initialised as in DL-QAT, B at zero.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backend.models.patching import swap_modules
from backend.quantization.config import ALPHA, DLQATStage
from backend.quantization.dlqat.linear import new_factors, update_factor
from backend.quantization.dlqat.losses import text_loss
from backend.quantization.dlqat.run import DLQATRun
from backend.quantization.dlqat.stage_store import stage_name
from backend.quantization.dlqat.trainer import train_stage, trainable
from backend.reporter import Reporter


class LoRALinear(nn.Module):
    """Replaces a linear [out, in] = `shape` during LoRA training; itself it is not changed."""

    def __init__(
        self,
        base: nn.Module,
        shape: tuple[int, int],
        rank: int,
        factor: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base, self.factor = base, factor
        A, B = new_factors(shape, rank, base.get_parameter("weight").device, generator)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def merged(self, W: Tensor) -> Tensor:
        """W0 + c B A [out, in] in the dtype of `W`, the weights of the base."""
        return torch.addmm(W, self.B.detach(), self.A.detach(), alpha=self.factor)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.factor * linear(linear(x.to(self.A.dtype), self.A), self.B)


def train_lora(run: DLQATRun, reporter: Reporter) -> None:
    """Train A and B beside every quantised linear and store them as the stage "lora"."""
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    layers = {
        name: LoRALinear(
            x.layer, x.shape, config.rank, update_factor(x.read(), ALPHA, config.rank), generator
        )
        for name, x in run.linears.items()
    }
    parameters = {
        f"{name}.{part}": parameter
        for name, layer in layers.items()
        for part, parameter in layer.named_parameters(recurse=False)
    }

    def judge() -> list[float]:
        """The held-out losses of the merged weights, which the native decoder can read."""
        merged = {n: run.passed(layers[n].merged(x.read())) for n, x in run.linears.items()}
        bases = {n: layer.base for n, layer in layers.items()}
        with swap_modules(run.model, bases), run.with_weights(merged):
            return run.heldout_losses(reporter)

    with swap_modules(run.model, layers), trainable(run.model, config.checkpointing, reporter):
        loss = text_loss(run, run.model)
        train_stage(
            run, DLQATStage.LORA, parameters, loss, lambda _: None, judge, judge(), reporter
        )
    run.store.save(stage_name(DLQATStage.LORA), {n: p.detach() for n, p in parameters.items()})
