"""Settings of a drafter and its training, from which form, CLI, API and stored record are built.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from backend.registry import Declarations

DECLARED_DRAFTERS = Declarations("drafter", "backend.drafters")
ArchitectureName: TypeAlias = Literal[*DECLARED_DRAFTERS]  # type: ignore[valid-type]
ADVANCED: JsonDict = {"advanced": True}
WRITERS = 64  # batch size of response generation
LONGEST = 192  # tokens of a generated prompt; longer ones have gone off topic and are dropped
CHUNK = 256  # anchors whose logits [CHUNK, K, v] are in memory at once


class DrafterConfig(BaseModel):
    """Architecture of a drafter: Amphista, Medusa, and everything between (see `ARMS`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: ArchitectureName = Field(
        "amphista",
        title="Drafter architecture",
        description="amphista: all heads in parallel; Medusa, by the settings below. hydra, "
        "eagle: token after token, each from those before it.",
        json_schema_extra=ADVANCED,
    )
    heads: int = Field(
        4,
        ge=1,
        le=10,
        title="Drafting heads",
        description="Tokens drafted in one parallel pass.",
        json_schema_extra={"unit": "heads"},
    )
    adaptation_layers: int = Field(
        2,
        ge=0,
        le=2,
        title="Staged adaptation layers",
        description="Causal decoder layers, cloned from the last ones of the base model. 0: none "
        "(Medusa).",
        json_schema_extra={"unit": "layers", **ADVANCED},
    )
    staged: bool = Field(
        True,
        title="Staged heads",
        description="The first half of the heads reads the first adaptation layer, the others the "
        "last. Off: all read the last.",
        json_schema_extra=ADVANCED,
    )
    sampled_token: bool = Field(
        True,
        title="Sampled token as input",
        description="The adaptation layers see the token the base model has just sampled.",
        json_schema_extra=ADVANCED,
    )
    encoder: bool = Field(
        True,
        title="Auto-embedding block",
        description="Bi-directional encoder: the heads attend to each other.",
        json_schema_extra=ADVANCED,
    )
    position: bool = Field(
        True,
        title="Head position encoding",
        description="Learned, added to the inputs of the encoder.",
        json_schema_extra=ADVANCED,
    )
    encoder_width: int = Field(
        0,
        ge=0,
        le=65536,
        title="Encoder width",
        description="0: the width of the base model. Smaller makes drafting cheaper.",
        json_schema_extra=ADVANCED,
    )
    head_layers: int = Field(
        1,
        ge=0,
        le=64,
        title="Residual blocks per head",
        description="0: as many as give a drafter of heads alone the parameter count of a full "
        "one, for a fair comparison.",
        json_schema_extra={"unit": "blocks", **ADVANCED},
    )
    draft_vocabulary: int = Field(
        8192,
        ge=0,
        le=2**20,
        title="Draft vocabulary",
        description="Only the most frequent tokens of the training text are drafted. 0: all. The "
        "vocabulary of the base model is not reduced.",
        json_schema_extra={"unit": "tokens", **ADVANCED},
    )


class TrainingConfig(BaseModel):
    """Training of a drafter. Defaults are ours, tuned on a 135M-parameter model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float = Field(
        10.0,
        ge=0,
        le=10_000,
        title="Training time",
        description="Step count is set from throughput over the first 2 % of the time budget. "
        "0: use Training steps (Advanced).",
        json_schema_extra={"unit": "minutes"},
    )
    steps: int = Field(
        500,
        ge=1,
        le=10**7,
        title="Training steps",
        description="Used when the training time is 0.",
        json_schema_extra={"unit": "steps", **ADVANCED},
    )
    batch: int = Field(
        8,
        ge=1,
        le=1024,
        title="Batch size",
        description="Sequences per step.",
        json_schema_extra={"unit": "sequences", **ADVANCED},
    )
    anchors: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Anchor share",
        description="Share of answer positions the heads are trained at, sampled at every "
        "step and rounded up to a multiple of 64.",
        json_schema_extra=ADVANCED,
    )
    rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="Of new layers.",
        json_schema_extra=ADVANCED,
    )
    copied_rate: float = Field(
        2e-4,
        ge=0,
        le=1,
        title="Learning rate of copied layers",
        description="Of layers cloned from the base model.",
        json_schema_extra=ADVANCED,
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        title="Warm-up",
        description="Share of the steps with a rising learning rate; it then decays to a tenth.",
        json_schema_extra=ADVANCED,
    )
    discount: float = Field(
        0.8,
        gt=0,
        le=1,
        title="Head discount",
        description="Weight of each head in the loss, relative to the previous one.",
        json_schema_extra=ADVANCED,
    )
    teacher_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        title="Teacher weight",
        description="Of the cross-entropy with the distribution of the base model.",
        json_schema_extra=ADVANCED,
    )
    label_weight: float = Field(
        0.1,
        ge=0,
        le=100,
        title="Label weight",
        description="Of the cross-entropy with the next token of the text.",
        json_schema_extra=ADVANCED,
    )
    initial: Literal["fitted", "identity"] = Field(
        "fitted",
        title="Fusion initialization",
        description="fitted: least squares to the inputs of the cloned layers in the base model. "
        "identity: pass the hidden state through, ignore the sampled token at first.",
        json_schema_extra=ADVANCED,
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Precision",
        description="Of base model and forward passes. auto: bfloat16 where the hardware supports "
        "it. Weights are trained in float32.",
        json_schema_extra=ADVANCED,
    )


ARMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Amphista": {},
        "Medusa": {"adaptation_layers": 0, "encoder": False},
        "Medusa, as many parameters": {
            "adaptation_layers": 0,
            "encoder": False,
            "head_layers": 0,
        },
        "Encoder only": {"adaptation_layers": 0},
        "Staged adaptation only": {"encoder": False},
        "Without the sampled token": {"sampled_token": False},
        "EAGLE": {"architecture": "eagle", "adaptation_layers": 1},
        "Hydra": {"architecture": "hydra", "adaptation_layers": 1},
    }
)


SHAPE: Mapping[str, Any] = MappingProxyType(  # the fields that identify an arm; no sizes
    DrafterConfig().model_dump(exclude={"heads", "draft_vocabulary", "encoder_width"})
)


def arm_of(values: Mapping[str, Any]) -> str:
    """Name of the ablation arm that these config values describe, whatever the sizes."""
    shape = {name: values.get(name, usual) for name, usual in SHAPE.items()}
    arms = (name for name, fields in ARMS.items() if shape == {**SHAPE, **fields})
    own = str(values.get("architecture", "amphista"))
    return next(arms, "Own" if own == "amphista" else own)


def head_stage(head: int) -> str:
    """The stage of the metrics of a head, from 1."""
    return f"head-{head}"
