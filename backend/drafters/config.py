"""Settings of a drafter and its training, from which form, CLI, API and stored record are built."""

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
GENERATION_BATCH = 64  # batch size of response generation
MAX_PROMPT_TOKENS = 192  # generated; longer prompts have gone off topic and are dropped
ANCHOR_SHARE = 0.5  # of the answer positions that the heads are trained at in a step
CHUNK = 64  # anchors whose logits [CHUNK, K, v] are computed at once: they fit in a cache


class DrafterConfig(Options):
    """Architecture and size of a drafter."""

    architecture: ArchitectureName = option("amphista", "Drafter architecture", advanced=True)
    """amphista, medusa: all heads in parallel. hydra, eagle: token after token, each from those
    before it."""
    ablation: Ablation = option("none", "Ablation", advanced=True)
    """The architecture without one of its parts, as a control. as many parameters: Medusa with
    residual blocks until it is as large as Amphista."""
    heads: int = option(4, "Drafting heads", ge=1, le=10, unit="heads")
    """Tokens drafted in one parallel pass."""
    draft_vocabulary: int = option(
        8192, "Draft vocabulary", ge=0, le=2**20, unit="tokens", advanced=True
    )
    """Only the most frequent tokens of the training text are drafted. 0: all. The vocabulary of the
    base model is not reduced."""

    @field_validator("ablation")
    @classmethod
    def _of_the_architecture(cls, value: str, info: ValidationInfo) -> str:
        own = ABLATIONS.get(str(info.data.get("architecture")), ())
        if value != "none" and value not in own:
            raise ValueError(f"Choose {' or '.join(('none', *own))} for this architecture")
        return value

    @property
    def adaptation_layers(self) -> int:
        """Number of decoder layers cloned from the end of the base model."""
        if self.ablation == "encoder only":
            return 0
        return int(DECLARED_DRAFTERS[self.architecture].facts.get("adaptation_layers", 0))


class TrainingConfig(Options):
    """Training of a drafter. Defaults are ours, tuned on a 135M-parameter model."""

    minutes: float = option(10.0, "Training time", ge=0, le=10_000, unit="minutes")
    """Trains for this long; the number of steps follows from this machine's speed. 0: as many as
    Training steps (Advanced)."""
    steps: int = option(500, "Training steps", ge=1, le=10**7, unit="steps", advanced=True)
    """Used when the training time is 0."""
    batch: int = option(4, "Batch size", ge=1, le=1024, unit="sequences", advanced=True)
    """Sequences per step."""
    rate: float = option(1e-3, "Learning rate", gt=0, le=1, advanced=True)
    """Of new layers; of those copied from the base model relative to their weights."""
    precision: Dtype = option("auto", "Precision", advanced=True)
    """Of base model and forward passes. auto: bfloat16 where the hardware supports it. Weights are
    trained in float32."""


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
    """Name of the architecture, or of the ablation, that these config values describe."""
    shape = {name: values.get(name) or usual for name, usual in SHAPE.items()}
    arms = (name for name, fields in ARMS.items() if shape == {**SHAPE, **fields})
    return next(arms, str(shape["architecture"]))


def head_stage(head: int) -> str:
    """The stage of the metrics of a head, from 1."""
    return f"head-{head}"
