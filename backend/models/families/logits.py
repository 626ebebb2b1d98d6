"""Transformation of the logits after the head, W h (+ b):

    l = cap tanh(z / cap),   z = scale (W h + b)

Gemma applies a cap, Cohere multiplies by its logit_scale, Granite divides by its logits_scaling."""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LogitTransform:
    """Scale and cap of logits; the identity by default."""

    scale: float = 1.0
    cap: float = 0.0  # limit of the absolute value; 0: none

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitTransform":
        """The transformation of a model with this config."""
        scale = getattr(config, "logit_scale", None) or 1.0
        divisor = getattr(config, "logits_scaling", None) or 1.0
        cap = getattr(config, "final_logit_softcapping", None) or 0.0
        return cls(scale / divisor, cap)

    def __call__(self, raw: Tensor) -> Tensor:
        """Transform the outputs of the head."""
        logits = raw * self.scale if self.scale != 1 else raw
        return (logits / self.cap).tanh() * self.cap if self.cap else logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative dl / d(W h + b) at `logits`."""
        return self.scale * (1 - (logits / self.cap).square()) if self.cap else self.scale
