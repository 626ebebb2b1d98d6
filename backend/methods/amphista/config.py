"""What a person may choose about a drafter and its training. Imports no torch: the form, the CLI
and the stored record are all drawn from these fields."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

ADVANCED: JsonDict = {"advanced": True}
WRITERS = 64  # answers the base writes at once
LONGEST = 192  # tokens of a prompt it writes; a longer one has lost its thread and is left out
LOOKED_UP = -1  # who guessed a token that was looked up in the text, where heads count from 1
CHUNK = 256  # anchors whose logits [CHUNK, K, v] are held at once
COLDEST, LEAST_PENALTY = 0.01, 0.1  # logits divided by less would not be finite


def drawable(temperature: float) -> float:
    """The temperature, which is 0 (the likeliest token) or large enough to divide by.

    Raises:
        ValueError: it is neither.
    """
    if temperature and temperature < COLDEST:
        raise ValueError(f"Write 0, or at least {COLDEST}")
    return temperature


Temperature = Annotated[float, AfterValidator(drawable)]


class DrafterConfig(BaseModel):
    """The shape of a drafter: Amphista, Medusa, and everything between (see `ARMS`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heads: int = Field(
        4,
        ge=1,
        le=10,
        title="Drafting heads",
        description="Tokens guessed ahead in one parallel pass.",
        json_schema_extra={"unit": "heads"},
    )
    adaptation_layers: int = Field(
        2,
        ge=0,
        le=2,
        title="Staged adaptation layers",
        description="Causal decoder layers, cloned from the base's last ones. 0: none (Medusa).",
        json_schema_extra={"unit": "layers", **ADVANCED},
    )
    staged: bool = Field(
        True,
        title="Heads divided by stage",
        description="The first half of the heads reads the first adaptation layer. Off: all read "
        "the last.",
        json_schema_extra=ADVANCED,
    )
    sampled_token: bool = Field(
        True,
        title="Sampled token as input",
        description="The adaptation layers see the token the base has just chosen.",
        json_schema_extra=ADVANCED,
    )
    encoder: bool = Field(
        True,
        title="Auto-embedding block",
        description="A bi-directional encoder in which the heads attend to each other.",
        json_schema_extra=ADVANCED,
    )
    position: bool = Field(
        True,
        title="Position encoding of heads",
        description="The encoder is told which head is which.",
        json_schema_extra=ADVANCED,
    )
    encoder_width: int = Field(
        0,
        ge=0,
        le=65536,
        title="Encoder width",
        description="0: that of the base. Less makes drafting cheaper.",
        json_schema_extra=ADVANCED,
    )
    head_layers: int = Field(
        1,
        ge=0,
        le=64,
        title="Residual blocks in a head",
        description="0: as many as give a drafter without adaptation layers and encoder the "
        "parameters of a whole one, for a fair comparison.",
        json_schema_extra={"unit": "blocks", **ADVANCED},
    )
    draft_vocabulary: int = Field(
        8192,
        ge=0,
        le=2**20,
        title="Draft vocabulary",
        description="The most frequent tokens of the training text; only they can be guessed. 0: "
        "all. The base's own vocabulary is never reduced.",
        json_schema_extra={"unit": "tokens", **ADVANCED},
    )


class TrainingConfig(BaseModel):
    """How a drafter learns. Defaults are ours, measured on a model of 135 million weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float = Field(
        10.0,
        ge=0,
        le=10_000,
        title="Training time",
        description="Sets the steps from the pace in its first fiftieth. 0: the training steps "
        "under Advanced count.",
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
        title="Sequences in a step",
        description="More is steadier and slower.",
        json_schema_extra={"unit": "sequences", **ADVANCED},
    )
    anchors: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Share of anchors",
        description="Of the positions in a step's answers, from which the heads guess; drawn anew, "
        "and rounded up to a multiple of 64.",
        json_schema_extra=ADVANCED,
    )
    rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        title="Learning rate",
        description="Of the new parts.",
        json_schema_extra=ADVANCED,
    )
    copied_rate: float = Field(
        2e-4,
        ge=0,
        le=1,
        title="Learning rate of copied layers",
        description="Of the layers cloned from the base.",
        json_schema_extra=ADVANCED,
    )
    warmup: float = Field(
        0.05,
        ge=0,
        lt=1,
        title="Warm-up",
        description="Share of the steps in which the rate rises; then it falls to a tenth.",
        json_schema_extra=ADVANCED,
    )
    discount: float = Field(
        0.8,
        gt=0,
        le=1,
        title="Discount",
        description="Each further head counts so much less in the loss.",
        json_schema_extra=ADVANCED,
    )
    teacher_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        title="Teacher weight",
        description="Cross-entropy to the base's own distribution.",
        json_schema_extra=ADVANCED,
    )
    label_weight: float = Field(
        0.1,
        ge=0,
        le=100,
        title="Label weight",
        description="Cross-entropy to the token that followed.",
        json_schema_extra=ADVANCED,
    )
    initial: Literal["fitted", "identity"] = Field(
        "fitted",
        title="Initial fusion",
        description="fitted: least squares to what the cloned layers read in the base. identity: "
        "hidden state passed on, sampled token ignored at first.",
        json_schema_extra=ADVANCED,
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        title="Precision",
        description="Of the base and of the passes. auto: bfloat16 where the processor computes "
        "in it. Weights are trained in float32.",
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
    }
)


SHAPE: Mapping[str, Any] = MappingProxyType(  # what decides which arm a drafter is: no sizes
    DrafterConfig().model_dump(exclude={"heads", "draft_vocabulary", "encoder_width"})
)


def arm_of(values: Mapping[str, Any]) -> str:
    """The name of the arm these values of a config are, whatever its sizes."""
    shape = {name: values.get(name, usual) for name, usual in SHAPE.items()}
    arms = (name for name, fields in ARMS.items() if shape == {**SHAPE, **fields})
    return next(arms, "Own")
