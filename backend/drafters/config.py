"""Config of a drafter and its training. Does not import torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from pydantic import ValidationInfo, field_validator

from backend.options import Dtype, Options, option
from backend.registry import Declarations

DECLARED_DRAFTERS = Declarations("drafter", "backend.drafters")
ArchitectureName: TypeAlias = Literal[*DECLARED_DRAFTERS]  # type: ignore[valid-type]
Ablation: TypeAlias = Literal[
    "none", "encoder only", "adaptation only", "no sampled token", "as many parameters"
]
ABLATIONS = {
    "amphista": ("encoder only", "adaptation only", "no sampled token"),
    "medusa": ("as many parameters",),
}
SHAPE: Mapping[str, str] = MappingProxyType({"architecture": "amphista", "ablation": "none"})
GENERATION_BATCH = 64  # answers generated at the same time
MAX_PROMPT_TOKENS = 192  # longer generated prompts tend to lose their topic and are dropped
ANCHOR_SHARE = 0.5  # share of the answer positions at which the heads are trained in a step
CHUNK = 64  # anchors whose logits [CHUNK, K, v] are computed at once, to fit in a cache


class DrafterConfig(Options):
    """Architecture and size of a drafter."""

    architecture: ArchitectureName = option("amphista", "Drafter architecture", advanced=True)
    """amphista, medusa: all heads draft in parallel. hydra, eagle: token by token, each from the
    earlier draft tokens."""
    ablation: Ablation = option("none", "Ablation", advanced=True)
    """Control without one part of the architecture. as many parameters: Medusa with additional
    residual blocks, as large as Amphista."""
    heads: int = option(4, "Drafting heads", ge=1, le=10, unit="heads")
    """Tokens drafted in one parallel pass."""
    draft_vocabulary: int = option(
        8192, "Draft vocabulary", ge=0, le=2**20, unit="tokens", advanced=True
    )
    """Draft only the most frequent tokens of the training text. 0: all tokens. The base model keeps
    its vocabulary."""

    @field_validator("ablation")
    @classmethod
    def _check_ablation(cls, value: str, info: ValidationInfo) -> str:
        ablations = ("none", *ABLATIONS.get(str(info.data.get("architecture")), ()))
        if value not in ablations:
            raise ValueError(f"Choose {' or '.join(ablations)} for this architecture")
        return value

    @property
    def adaptation_layers(self) -> int:
        """Number of decoder layers cloned from the end of the base model."""
        if self.ablation == "encoder only":
            return 0
        return int(DECLARED_DRAFTERS[self.architecture].facts.get("adaptation_layers", 0))


class TrainingConfig(Options):
    """Config of the training of a drafter. Defaults are ours, tuned on a 135M-parameter model."""

    minutes: float = option(10.0, "Training time", ge=0, le=10_000, unit="minutes")
    """Duration of the training; the number of steps follows from the speed of this machine. 0: the
    number of Training steps (Advanced)."""
    steps: int = option(500, "Training steps", ge=1, le=10**7, unit="steps", advanced=True)
    """Number of steps if the training time is 0."""
    batch: int = option(4, "Batch size", ge=1, le=1024, unit="sequences", advanced=True)
    """Sequences per step."""
    learning_rate: float = option(1e-3, "Learning rate", gt=0, le=1, advanced=True)
    """Learning rate of new layers. For layers copied from the base model it is relative to the size
    of their weights."""
    precision: Dtype = option("auto", "Precision", advanced=True)
    """Precision of the base model and of forward passes. auto: bfloat16 if the hardware supports
    it. Weights are trained in float32."""


ARMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Amphista": {},
        "Medusa": {"architecture": "medusa"},
        "Hydra": {"architecture": "hydra"},
        "EAGLE": {"architecture": "eagle"},
        "Encoder only": {"ablation": "encoder only"},
        "Staged adaptation only": {"ablation": "adaptation only"},
        "Without the sampled token": {"ablation": "no sampled token"},
        "Medusa, as many parameters": {"architecture": "medusa", "ablation": "as many parameters"},
    }
)


def arm_of(values: Mapping[str, Any]) -> str:
    """Return the name of the architecture or ablation that the config values describe."""
    shape = {name: values.get(name) or default for name, default in SHAPE.items()}
    arms = (name for name, fields in ARMS.items() if shape == {**SHAPE, **fields})
    return next(arms, str(shape["architecture"]))


def head_stage(head: int) -> str:
    """Return the stage of the metrics of a head, counted from 1."""
    return f"head-{head}"
