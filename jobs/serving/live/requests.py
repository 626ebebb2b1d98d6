"""What the process is asked about live models. Does not import torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from backend.errors import ConfigError
from backend.live.address import Address
from backend.models.facts import ModelFacts
from backend.models.memory import check_memory, memory_available, weight_memory

PREFIX = "/live"  # of the paths of the process
ROOM = 2**30  # bytes of tables
MAX_TOKENS, MAX_LETTERS = 256, 20_000
SILENT_S, PULSE_S = 180.0, 10.0  # without any event a request ends; that it still waits is told

Browser = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,40}$")]
ModelName = Annotated[str, Field(min_length=1, max_length=300)]
Wanted = Literal["loss", "text", "speed", "refine", "why"]


class StateBody(BaseModel):
    """A state of a model. `browser`: whose it is, as what was refined is kept for it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: ModelName
    state: Address
    browser: Browser


class TensorBody(StateBody):
    """One layer of a state."""

    name: str = Field(max_length=300)


class LiveBody(StateBody):
    """A state, and what is wanted of it. A newer request of the same `browser` ends an older one.

    Attributes:
        prompt, tokens: what text begins with, and how many follow.
        text: of which is asked why its tokens are lost.
        against: a saved model of the same shapes, such as a run: its blocks are asked about then,
            one restored at a time to those of `model`, whatever the state.
    """

    want: list[Wanted] = Field(default_factory=list, max_length=10)
    prompt: str = Field("", max_length=MAX_LETTERS)
    tokens: int = Field(48, ge=1, le=MAX_TOKENS)
    text: str = Field("", max_length=MAX_LETTERS)
    against: str = Field("", max_length=300)

    @property
    def letters(self) -> int:
        return len(self.prompt) + len(self.text)


class ExportBody(StateBody):
    """A state to be written as it is, as a model of that `name` in the data folder."""

    format: Literal["compressed-tensors", "slimscope", "dense", "gguf"] = "compressed-tensors"
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


def live_memory(facts: ModelFacts) -> dict[str, int]:
    """Purpose -> bytes of a live model, from above: its weights as they are stored, dense and live
    weights in the decoder's layout, tables of ranks and scales."""
    return {
        "weights": weight_memory(facts, facts.saved_dtype),
        "layouts": 3 * weight_memory(facts, "bfloat16"),
        "tables": min(ROOM, 8 * facts.linear_weights),
    }


def require_live(facts: ModelFacts) -> None:
    """Refuse a model that cannot be live. Raises ModelError: it is packed, cannot be compressed, or
    does not fit into memory."""
    facts.require_compressible()
    if facts.quantized:
        raise ConfigError(
            f"{facts.title} cannot be changed live.",
            "Its weights are quantized already.",
            "Choose the dense model.",
            "model",
        )
    check_memory(live_memory(facts), memory_available(), facts.title)
